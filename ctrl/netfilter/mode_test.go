package netfilter

import (
	"errors"
	"testing"
)

func TestChoose(t *testing.T) {
	noBinary, noModule := errors.New("no iptables binary"), errors.New("no nf_tables")
	for _, tt := range []struct {
		name               string
		wanted             bool // nftables requested
		iptables, nftables error
		want               Mode
		opened             int // number of attempts to open iptables
	}{
		{"default", false, nil, nil, IPTables, 1},
		{"default without nftables", false, nil, noModule, IPTables, 1},
		{"default without iptables", false, noBinary, nil, NFTables, 1},
		{"default without either", false, noBinary, noModule, "", 1},
		{"nftables", true, nil, nil, NFTables, 0},
		{"nftables without iptables", true, noBinary, nil, NFTables, 0},
		{"nftables that the kernel lacks", true, nil, noModule, "", 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			opened := 0
			a, err := choose(tt.wanted,
				func() (applier, error) { opened++; return &fakeApplier{fixedMode: IPTables}, tt.iptables },
				func() (applier, error) { return &fakeApplier{fixedMode: NFTables}, tt.nftables })
			if opened != tt.opened {
				t.Errorf("iptables opened %d times", opened)
			}
			if tt.want != "" {
				if err != nil || a.mode() != tt.want {
					t.Errorf("got %v, %v", a, err)
				}
				return
			}
			named := errors.Is(err, ErrUnsupported) && errors.Is(err, noModule) && errors.Is(err, noBinary) != tt.wanted
			if a != nil || !named {
				t.Errorf("got %v, %v", a, err)
			}
		})
	}
}
