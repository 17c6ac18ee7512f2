package testutil

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"strings"
	"testing"
)

// A newcomer finds his way in a package by the names of its files, and about a type by
// its methods: too many of either, and he does not.
const (
	mostMethods = 40 // of a type, with those of what it embeds
	mostFiles   = 32 // of a package, without tests and generated code
)

func TestWallsOfSize(t *testing.T) {
	for _, p := range modulePackages(t) {
		name := strings.TrimPrefix(p.ImportPath, module+"/")
		files := parseAll(t, p)
		if len(files) > mostFiles {
			t.Errorf("%s has %d files, more than %d: move a topic to a package of its own", name, len(files), mostFiles)
		}
		for of, n := range methods(files) {
			if n > mostMethods {
				t.Errorf("%s.%s has %d methods, more than %d: make a value of each topic", name, of, n, mostMethods)
			}
		}
	}
}

// parseAll reads a package without generated code.
func parseAll(t *testing.T, p goPackage) (files []*ast.File) {
	t.Helper()
	fset := token.NewFileSet()
	for _, name := range p.GoFiles {
		f, err := parser.ParseFile(fset, filepath.Join(p.Dir, name), nil, parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		if !ast.IsGenerated(f) {
			files = append(files, f)
		}
	}
	return files
}

// methods counts those of each type of a package, and those that it gets from types
// of the package that it embeds.
func methods(files []*ast.File) map[string]int {
	own, embeds := map[string]int{}, map[string][]string{}
	for _, f := range files {
		for _, d := range f.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv != nil {
				own[baseName(fn.Recv.List[0].Type)]++
			}
			gen, ok := d.(*ast.GenDecl)
			if !ok {
				continue
			}
			for _, spec := range gen.Specs {
				if spec, ok := spec.(*ast.TypeSpec); ok {
					n, embedded := declared(spec.Type)
					own[spec.Name.Name] += n
					embeds[spec.Name.Name] = embedded
				}
			}
		}
	}
	all := map[string]int{}
	var count func(name string) int
	count = func(name string) int {
		n := own[name]
		for _, e := range embeds[name] {
			n += count(e)
		}
		return n
	}
	for name := range own {
		all[name] = count(name)
	}
	return all
}

// declared returns how many methods the type itself lists, and what it embeds.
func declared(typ ast.Expr) (n int, embeds []string) {
	var fields *ast.FieldList
	switch typ := typ.(type) {
	case *ast.StructType:
		fields = typ.Fields
	case *ast.InterfaceType:
		fields = typ.Methods
	default:
		return 0, nil
	}
	for _, f := range fields.List {
		_, method := f.Type.(*ast.FuncType)
		switch _, inInterface := typ.(*ast.InterfaceType); {
		case len(f.Names) == 0:
			embeds = append(embeds, baseName(f.Type))
		case method && inInterface:
			n += len(f.Names)
		}
	}
	return n, embeds
}

// baseName is the name of a type of this package, without pointer and parameters; ""
// for any other.
func baseName(typ ast.Expr) string {
	switch typ := typ.(type) {
	case *ast.Ident:
		return typ.Name
	case *ast.StarExpr:
		return baseName(typ.X)
	case *ast.IndexExpr:
		return baseName(typ.X)
	case *ast.IndexListExpr:
		return baseName(typ.X)
	}
	return ""
}
