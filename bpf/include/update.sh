#!/bin/sh
# Refreshes the vendored libbpf headers from Debian's libbpf-dev (1.1.2).
# They are LGPL-2.1 OR BSD-2-Clause; used here under BSD-2-Clause.
set -eu
cd "$(dirname "$0")/bpf"
for h in bpf_helpers.h bpf_helper_defs.h bpf_endian.h bpf_core_read.h; do
	cp "/usr/include/bpf/$h" .
done
