package datapath

//go:generate go tool bpf2go -tags linux -cc clang-19 -strip llvm-strip-19 -target bpfel -cflags "-O2 -g -Wall -Wextra -Werror -Wno-unused-parameter -mcpu=v3 -fno-strict-aliasing" -type fbr_layout -type fbr_class -type fbr_port_state -type fbr_sess_state -type fbr_reason -type fbr_dev_flags -type fbr_net_flags -type fbr_sess_bits -type fbr_op -type fbr_request -type fbr_carry_result tc ../bpf/tc.bpf.c

// The same programs for IPv6.
//go:generate go tool bpf2go -tags linux -cc clang-19 -strip llvm-strip-19 -target bpfel -cflags "-O2 -g -Wall -Wextra -Werror -Wno-unused-parameter -mcpu=v3 -fno-strict-aliasing -DFBR_AF=6" tc6 ../bpf/tc.bpf.c
