package ctrl

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
)

func association(n int) Association {
	return Association{Local: addr("172.31.0.1"), Remote: addr(fmt.Sprintf("172.31.0.%d", n)),
		LocalNet: prefix("10.5.1.0/24"), RemoteNet: prefix(fmt.Sprintf("10.5.%d.0/24", n))}
}

func TestDiffPolicies(t *testing.T) {
	two, three := association(2), association(3)
	moved := two // another subnet behind the same address
	moved.RemoteNet = prefix("10.5.20.0/24")
	foreign := func(change func(*Policy)) Policy {
		p := association(9).Policies()[0]
		change(&p)
		return p
	}
	others := []Policy{
		foreign(func(p *Policy) { p.ReqID = 12 }),
		foreign(func(p *Policy) { p.Dst, p.Priority = prefix("10.5.10.0/24"), 300000 }),
		foreign(func(p *Policy) { p.Dst = prefix("192.168.1.0/24") }),
		foreign(func(p *Policy) { p.Src = prefix("192.168.1.0/24") }),
		{Dir: Out, Src: prefix("0.0.0.0/0"), Dst: prefix("0.0.0.0/0")},
	}
	const to2 = " tmpl src 172.31.0.1 dst 172.31.0.2 proto esp reqid 11 mode tunnel"
	const from2 = " tmpl src 172.31.0.2 dst 172.31.0.1 proto esp reqid 11 mode tunnel"
	removed2 := []string{
		"delete policy src 10.5.1.0/24 dst 10.5.2.0/24 dir out" + to2,
		"delete policy src 10.5.2.0/24 dst 10.5.1.0/24 dir in" + from2,
		"delete policy src 10.5.2.0/24 dst 10.5.1.0/24 dir fwd" + from2,
	}
	blocking := two.Policies()[0]
	blocking.ReqID = 4
	changed := two.Policies()
	changed[0].TunnelDst = addr("172.31.0.99")
	for _, tt := range []struct {
		name      string
		have      []Policy
		want      []Association
		ops       []string
		conflicts []string
	}{
		{name: "in place, beside others", have: append(two.Policies(), others...), want: []Association{two}},
		{name: "new node", have: others, want: []Association{two}, ops: []string{
			"replace policy src 10.5.1.0/24 dst 10.5.2.0/24 dir out" + to2,
			"replace policy src 10.5.2.0/24 dst 10.5.1.0/24 dir in" + from2,
			"replace policy src 10.5.2.0/24 dst 10.5.1.0/24 dir fwd" + from2,
		}},
		{name: "node gone", have: slices.Concat(two.Policies(), three.Policies(), others), want: []Association{three},
			ops: slices.Insert(slices.Clone(removed2), 1, "delete security associations of 172.31.0.1 and 172.31.0.2")},
		{name: "other subnet of a node", have: slices.Concat(two.Policies(), moved.Policies()), want: []Association{moved},
			ops: removed2},
		{name: "changed by another program", have: changed, want: []Association{two},
			ops: []string{"replace policy src 10.5.1.0/24 dst 10.5.2.0/24 dir out" + to2}},
		{name: "taken by another program", have: append(two.Policies()[1:], blocking), want: []Association{two}, conflicts: []string{
			"policy src 10.5.1.0/24 dst 10.5.2.0/24 dir out tmpl src 172.31.0.1 dst 172.31.0.2 proto esp reqid 4 mode tunnel " +
				"blocks policy src 10.5.1.0/24 dst 10.5.2.0/24 dir out" + to2}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			want := State{Networks: nets, Associations: tt.want}
			for _, a := range tt.want {
				want.Policies = append(want.Policies, a.Policies()...)
			}
			got := diff(State{Policies: tt.have}, want)
			if !slices.Equal(texts(got.ops), tt.ops) || !slices.Equal(got.conflicts, tt.conflicts) {
				t.Errorf("got\n%s\nconflicts %q\nwant\n%s\nconflicts %q", strings.Join(texts(got.ops), "\n"), got.conflicts,
					strings.Join(tt.ops, "\n"), tt.conflicts)
			}
		})
	}
}

func TestSecretHidesItself(t *testing.T) {
	s := IKE{PSK: "open sesame"}
	b, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	var log strings.Builder
	slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "psk", s.PSK, "ike", s)
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", "psk", s.PSK, "ike", s)
	text := fmt.Sprintf("%s %v %+v %#v %q %s", b, s, s, s, s.PSK, log.String())
	if strings.Contains(text, "sesame") || !strings.Contains(text, "(hidden)") {
		t.Error(text)
	}
}

// TestReconcilerHearsPolicies expects that a change of policies is looked at, as a missing policy
// lets packets out in clear text.
func TestReconcilerHearsPolicies(t *testing.T) {
	if r := NewReconciler(&fakeKernel{}, ReconcilerOptions{}); !r.contradicts(Event{Kind: PolicyEvent}) {
		t.Error("ignored")
	}
}
