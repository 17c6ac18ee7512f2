package datapath

import (
	"bytes"
	"strings"
	"testing"

	"github.com/cilium/ebpf/btf"
)

// The labels of drop reasons are the names that the programs give them.
func TestReasonsAreThoseOfThePrograms(t *testing.T) {
	types, err := btf.LoadSpecFromReader(bytes.NewReader(_TcBytes))
	check(t, err)
	var e *btf.Enum
	check(t, types.TypeByName("fbr_reason", &e))
	var want [tcFbrReasonFBR_REASON_MAX]Reason
	for _, v := range e.Values {
		if v.Value > 0 && v.Value < uint64(len(want)) {
			want[v.Value] = Reason(strings.ToLower(strings.TrimPrefix(v.Name, "FBR_")))
		}
	}
	if got := reasons(); got != want {
		t.Errorf("reasons are %q, the programs have %q", got, want)
	}
}
