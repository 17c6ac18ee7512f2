// Package bench compares ways to connect containers: fastbr and plain kernel
// bridges, in labs that differ only in the datapath.
//
// Contestants run in turn within each round (A B A B ...), so that other load
// on the machine affects all of them. The result is the median of the ratios of
// the rounds, with a bootstrap confidence interval. README.md beside this file
// says how to read the numbers. This package renders it.
package bench
