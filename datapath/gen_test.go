package datapath

// The programs with the test's clock and random numbers. They are written to a _test.go
// file, so they never ship.
//go:generate go tool bpf2go -tags linux -cc clang-19 -strip llvm-strip-19 -target bpfel -cflags "-O2 -g -Wall -Wextra -Werror -Wno-unused-parameter -mcpu=v3 -fno-strict-aliasing" injected ../bpf/tests/injected.bpf.c

// The same for IPv6.
//go:generate go tool bpf2go -tags linux -cc clang-19 -strip llvm-strip-19 -target bpfel -cflags "-O2 -g -Wall -Wextra -Werror -Wno-unused-parameter -mcpu=v3 -fno-strict-aliasing -DFBR_AF=6" injected6 ../bpf/tests/injected.bpf.c
