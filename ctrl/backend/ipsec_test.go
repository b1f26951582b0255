package backend

import (
	"fmt"
	"strings"
	"testing"

	"weft/ctrl"
	"weft/lease"
)

// psk is a key of the least length.
const psk = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

var (
	toNode2 = ctrl.Association{Local: addr("172.31.0.1"), Remote: addr("172.31.0.2"),
		LocalNet: prefix("10.5.1.0/24"), RemoteNet: prefix("10.5.2.0/24")}
	toNode2v6 = ctrl.Association{Local: addr("fd31::1"), Remote: addr("fd31::2"),
		LocalNet: prefix("fd10:5:0:1::/64"), RemoteNet: prefix("fd10:5:0:2::/64")}
	toNode3 = ctrl.Association{Local: addr("172.31.0.1"), Remote: addr("172.31.0.3"),
		LocalNet: prefix("10.5.1.0/24"), RemoteNet: prefix("10.5.3.0/24")}
)

func esp(dir ctrl.Direction, src, dst, from, to string) ctrl.Policy {
	return ctrl.Policy{Dir: dir, Src: prefix(src), Dst: prefix(dst), TunnelSrc: addr(from), TunnelDst: addr(to), ReqID: 11}
}

// samePublic gives a node the public addresses of node 2.
func samePublic(l lease.Lease) lease.Lease {
	l.PublicIP, l.PublicIPv6 = addr("172.31.0.2"), addr("fd31::2")
	return l
}

func TestIPsecConfig(t *testing.T) {
	for _, tt := range []struct{ keys, want string }{
		{``, "config key PSK has 0 characters, want at least 96"},
		{`"PSK":"` + psk[1:] + `",`, "config key PSK has 95 characters, want at least 96"},
		{`"psk":["` + psk + `"],`, "config key psk is not a string"},
		{`"PSK":"` + psk + `","ESPProposal":"",`, "config key ESPProposal is empty, want one such as aes128gcm16"},
		{`"PSK":"` + psk + `","UDPEncap":"yes",`, "config key UDPEncap"},
		{`"PSK":"` + psk + `","UDPEncap":true,"ESPProposal":"aes256gcm16-ecp384",`, ""},
	} {
		b, err := New(only4(network(t, `{`+tt.keys+`"Type":"ipsec"}`)), me())
		if tt.want == "" {
			if err != nil {
				t.Errorf("%s: %v", tt.keys, err)
			} else if got := b.Plan(node(1, "", "", ""), nil).IKE; got != (ctrl.IKE{PSK: psk, ESPProposal: "aes256gcm16-ecp384",
				UDPEncap: true}) {
				t.Errorf("settings %+v", got)
			} else if text := fmt.Sprintf("%v %+v %#v", got, got, got); strings.Contains(text, psk[:8]) {
				t.Errorf("the PSK is shown: %s", text)
			}
			continue
		}
		if err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), psk[2:10]) {
			t.Errorf("%s: got %v, want %s and no part of the PSK", tt.keys, err, tt.want)
		}
	}
}
