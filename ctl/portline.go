package ctl

import (
	"bytes"
	"encoding/json"
	"net/netip"
	"reflect"
	"strconv"

	"github.com/fastbr/fastbr/ctl/link"
)

// portRecord is a port in the file, a JSON text on one line. Every command reads
// that of every port, and most write it: a thousand of them take encoding/json as
// long as everything else takes a command. So what each port has is put together
// and taken apart here, in the words and the order of encoding/json, and only
// what few have is left to it, or a line that looks otherwise.
type portRecord struct {
	Network string `json:"network"`
	*port
}

// appendTo appends the line.
func (r portRecord) appendTo(b []byte) ([]byte, error) {
	for _, s := range []string{r.Network, r.Name, r.Port, r.Ifname, r.MAC} {
		if !plain(s) {
			text, err := json.Marshal(r)
			return append(append(b, text...), '\n'), err
		}
	}
	b = append(append(b, `{"network":"`...), r.Network...)
	b = append(append(b, `","name":"`...), r.Name...)
	b = append(append(b, `","port":"`...), r.Port...)
	b = strconv.AppendInt(append(b, `","index":`...), int64(r.Index), 10)
	b = append(append(b, `,"ifname":"`...), r.Ifname...)
	b = append(b, `","ip":"`...)
	if r.IP.IsValid() {
		b = r.IP.AppendTo(b)
	}
	b = append(append(b, `","mac":"`...), r.MAC...)
	b = strconv.AppendUint(append(b, `","netns":{"dev":`...), r.Netns.Dev, 10)
	b = strconv.AppendUint(append(b, `,"ino":`...), r.Netns.Ino, 10)
	b = strconv.AppendInt(append(b, `},"gso":`...), int64(r.GSO), 10)
	if reflect.ValueOf(r.portExtra).IsZero() {
		return append(b, '}', '\n'), nil
	}
	extra, err := json.Marshal(r.portExtra)
	if err != nil {
		return nil, err
	}
	extra[0] = ',' // in place of its brace
	return append(append(b, extra...), '\n'), nil
}

// plain tells of a string whether it is its own JSON text.
func plain(s string) bool {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c > '~' || c == '"' || c == '\\' {
			return false
		}
	}
	return true
}

// parsePort reads a line, whose bytes it changes.
func parsePort(line []byte) (portRecord, error) {
	var r portRecord
	extra, ok := r.parseCommon(line)
	if !ok {
		r = portRecord{port: &port{}}
		err := json.Unmarshal(line, &r)
		return r, err
	}
	if string(extra) == "}" {
		return r, nil
	}
	extra[0] = '{' // in place of the comma
	err := json.Unmarshal(extra, &r.portExtra)
	return r, err
}

// parseCommon reads what every port has. It returns what comes after it, from the
// comma or the last brace on, or false if the line is not as appendTo writes it.
func (r *portRecord) parseCommon(line []byte) (extra []byte, ok bool) {
	in := words{rest: line}
	*r = portRecord{Network: in.text(`{"network":"`), port: &port{
		Name: in.text(`","name":"`), Port: in.text(`","port":"`), Index: int(in.number(`","index":`)),
		Ifname: in.text(`,"ifname":"`), IP: in.addr(`","ip":"`), MAC: in.text(`","mac":"`),
		Netns: link.NetnsID{Dev: in.number(`","netns":{"dev":`), Ino: in.number(`,"ino":`)},
		GSO:   int(in.number(`},"gso":`))}}
	return in.rest, !in.strange && len(in.rest) > 0 && (in.rest[0] == ',' || in.rest[0] == '}')
}

// words takes a text apart. It is strange from the first that was not expected on.
type words struct {
	rest    []byte
	strange bool
}

func (w *words) expect(word string) {
	var ok bool
	w.rest, ok = bytes.CutPrefix(w.rest, []byte(word))
	w.strange = w.strange || !ok
}

// text is what stands between this word and the next quotation mark.
func (w *words) text(after string) string {
	w.expect(after)
	end := bytes.IndexByte(w.rest, '"')
	if end < 0 || bytes.IndexByte(w.rest[:end], '\\') >= 0 {
		w.strange = true
		return ""
	}
	s := string(w.rest[:end])
	w.rest = w.rest[end:]
	return s
}

func (w *words) addr(after string) netip.Addr {
	s := w.text(after)
	if s == "" {
		return netip.Addr{}
	}
	a, err := netip.ParseAddr(s)
	w.strange = w.strange || err != nil
	return a
}

func (w *words) number(after string) uint64 {
	w.expect(after)
	n := uint64(0)
	for i, c := range w.rest {
		if c < '0' || c > '9' {
			w.strange = w.strange || i == 0 || i > 18 // more might not fit
			w.rest = w.rest[i:]
			return n
		}
		n = n*10 + uint64(c-'0')
	}
	w.strange = true
	return 0
}
