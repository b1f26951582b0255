package netfilter

import "testing"

func TestVariantOrderFollowsHost(t *testing.T) {
	const (
		docker  = ":FORWARD ACCEPT [0:0]\n-A FORWARD -o docker0 -j DOCKER\n-A FORWARD -j DOCKER-USER\n"
		drop    = ":INPUT ACCEPT [0:0]\n:FORWARD DROP [12:34]\n"
		kubelet = "*mangle\n:KUBE-KUBELET-CANARY - [0:0]\nCOMMIT\n"
		flannel = ":FLANNEL-FWD - [0:0]\n-A FORWARD -m comment --comment \"flanneld forward\" -j FLANNEL-FWD\n" +
			"-A FLANNEL-FWD -s 10.5.0.0/16 -m comment --comment \"flanneld forward\" -j ACCEPT\n"
	)
	for _, tt := range []struct {
		name, nft, legacy, want string
	}{
		{"unused", "", "", ""},
		{"equal", docker, docker, ""},
		{"nft", docker, "", "-nft"},
		{"legacy", "", docker, "-legacy"},
		{"policy of legacy", "", drop, "-legacy"},
		{"policy of nft", drop, "", "-nft"},
		{"kubelet with nft", kubelet, docker + drop, "-nft"},
		{"kubelet with legacy", docker + drop, kubelet, "-legacy"},
		{"rules of flannel only", flannel, "", ""},
		{"rules of flannel against a policy", flannel, drop, "-legacy"},
	} {
		var nft, legacy usage
		nft.add(tt.nft)
		legacy.add(tt.legacy)
		if got := orderVariants(nft, legacy); got[0] != tt.want || len(got) != 3 {
			t.Errorf("%s: order %q, want %q first", tt.name, got, tt.want)
		}
	}
}
