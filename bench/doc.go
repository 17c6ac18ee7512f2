// Package bench compares ways to connect containers: fastbr beside a plain
// kernel bridge, in labs that differ in nothing but the datapath.
//
// Contestants run in turn within each round (A B A B ...), so that whatever
// else happens on the machine happens to all of them; what is reported is the
// median of the ratios of each round, with a bootstrap confidence interval.
// README.md beside this file says how to read the numbers, and is rendered by
// this package.
package bench
