package kube

import (
	"encoding/json"
	"maps"
	"net/netip"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"weft/lease"
)

func network(t testing.TB, text string) lease.Network {
	t.Helper()
	n, err := parseNetwork([]byte(text), nil)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

const dualConf = `{"EnableIPv6": true, "Network": "10.244.0.0/16", "IPv6Network": "fd00:10:244::/56"}`

// annotatedNode returns a Node with annotations. Their names are given without the prefix.
func annotatedNode(annotations map[string]string, cidrs ...string) *corev1.Node {
	n := newNode("n", cidrs...)
	n.Annotations = map[string]string{}
	for name, text := range annotations {
		n.Annotations[FlannelPrefix+"/"+name] = text
	}
	return n
}

func with(base map[string]string, more ...string) map[string]string {
	m := maps.Clone(base)
	for i := 0; i < len(more); i += 2 {
		if more[i+1] == "" {
			delete(m, more[i])
		} else {
			m[more[i]] = more[i+1]
		}
	}
	return m
}

func TestLeaseOf(t *testing.T) {
	v4 := map[string]string{"kube-subnet-manager": "true", "public-ip": "192.0.2.1", "backend-type": "",
		"backend-data": "null"}
	vxlan := with(v4, "backend-type", "vxlan", "backend-data", `{"VNI":1,"VtepMAC":"0a:00:00:00:00:01"}`)
	dual := with(vxlan, "public-ipv6", "2001:db8::1", "backend-v6-data", `{"VNI":1,"VtepMAC":"0a:00:00:00:00:02"}`)
	const cidr, cidr6 = "10.244.1.0/24", "fd00:10:244:1::/64"
	tests := []struct {
		name    string
		conf    string
		node    *corev1.Node
		want    string // subnets, addresses, type and data; empty: no lease
		wantErr string // substring; empty: no error
	}{
		{"udp", netConf, annotatedNode(v4, cidr), "10.244.1.0/24 - 192.0.2.1 -   ", ""},
		{"vxlan", netConf, annotatedNode(vxlan, cidr),
			`10.244.1.0/24 - 192.0.2.1 - vxlan {"VNI":1,"VtepMAC":"0a:00:00:00:00:01"} `, ""},
		{"not managed", netConf, annotatedNode(with(v4, "kube-subnet-manager", ""), cidr), "", ""},
		{"managed is not true", netConf, annotatedNode(with(v4, "kube-subnet-manager", "yes"), cidr), "", ""},
		{"no annotations", netConf, newNode("n", cidr), "", ""},
		{"no podCIDR", netConf, annotatedNode(v4), "", "no IPv4 podCIDR"},
		{"podCIDR field only", netConf, func() *corev1.Node {
			n := annotatedNode(v4)
			n.Spec.PodCIDR = cidr
			return n
		}(), "10.244.1.0/24 - 192.0.2.1 -   ", ""},
		{"podCIDR outside network", netConf, annotatedNode(v4, "10.9.1.0/24"), "", "not inside the network"},
		{"podCIDR wider than network", netConf, annotatedNode(v4, "10.0.0.0/8"), "", "not inside the network"},
		{"podCIDR wider than network, address inside", netConf, annotatedNode(v4, "10.244.0.0/12"), "",
			"not inside the network"},
		{"podCIDR with host bits", netConf, annotatedNode(v4, "10.244.1.7/24"), "10.244.1.0/24 - 192.0.2.1 -   ", ""},
		{"no address", netConf, annotatedNode(with(v4, "public-ip", ""), cidr), "", "holds an address"},
		{"IPv6 address as IPv4 address", netConf, annotatedNode(with(v4, "public-ip", "2001:db8::1"), cidr), "",
			"not an IPv4 address"},
		{"unspecified address", netConf, annotatedNode(with(v4, "public-ip", "0.0.0.0"), cidr), "",
			"not an IPv4 address"},
		{"data not JSON", netConf, annotatedNode(with(vxlan, "backend-data", "{"), cidr), "", "not JSON"},
		{"dual-stack", dualConf, annotatedNode(dual, cidr, cidr6),
			`10.244.1.0/24 fd00:10:244:1::/64 192.0.2.1 2001:db8::1 vxlan ` +
				`{"VNI":1,"VtepMAC":"0a:00:00:00:00:01"} {"VNI":1,"VtepMAC":"0a:00:00:00:00:02"}`, ""},
		{"IPv6 first", dualConf, annotatedNode(dual, cidr6, cidr),
			`10.244.1.0/24 fd00:10:244:1::/64 192.0.2.1 2001:db8::1 vxlan ` +
				`{"VNI":1,"VtepMAC":"0a:00:00:00:00:01"} {"VNI":1,"VtepMAC":"0a:00:00:00:00:02"}`, ""},
		{"IPv6 disabled", netConf, annotatedNode(dual, cidr, cidr6),
			`10.244.1.0/24 - 192.0.2.1 - vxlan {"VNI":1,"VtepMAC":"0a:00:00:00:00:01"} `, ""},
		{"invalid IPv6 keeps IPv4", dualConf, annotatedNode(with(dual, "backend-v6-data", "{"), cidr, cidr6),
			`10.244.1.0/24 - 192.0.2.1 - vxlan {"VNI":1,"VtepMAC":"0a:00:00:00:00:01"} `, "backend-v6-data"},
		{"invalid IPv4 keeps IPv6", dualConf, annotatedNode(with(dual, "public-ip", "here"), cidr, cidr6),
			`- fd00:10:244:1::/64 - 2001:db8::1 vxlan  {"VNI":1,"VtepMAC":"0a:00:00:00:00:02"}`, "public-ip"},
		{"both subnets, one address", dualConf, annotatedNode(v4, cidr, cidr6),
			"10.244.1.0/24 fd00:10:244:1::/64 192.0.2.1 -   ", ""},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			l, ok, err := leaseOf(test.node, defaultNames(t), network(t, test.conf))
			got := ""
			if ok {
				got = strings.Join([]string{orDash(l.Subnet), orDash(l.Subnet6), orDash(l.PublicIP),
					orDash(l.PublicIPv6),
					l.BackendType, string(l.BackendData), string(l.BackendV6Data)}, " ")
			}
			if got != test.want {
				t.Errorf("got  %q\nwant %q", got, test.want)
			}
			if text := errText(err); !strings.Contains(text, test.wantErr) || test.wantErr == "" && text != "" {
				t.Errorf("got error %q, want %q", text, test.wantErr)
			}
		})
	}
}

func orDash[T interface {
	IsValid() bool
	String() string
}](v T) string {
	if !v.IsValid() {
		return "-"
	}
	return v.String()
}

func errText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// TestAnnotationChanges includes the annotations that flannel writes.
func TestAnnotationChanges(t *testing.T) {
	a4, a6 := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")
	data, data6 := json.RawMessage(`{"VNI":1,"VtepMAC":"0a:00:00:00:00:01"}`),
		json.RawMessage(`{"VNI":1,"VtepMAC":"0a:00:00:00:00:02"}`)
	tests := []struct {
		name  string
		attrs lease.Attrs
		had   map[string]string
		want  string // JSON of the changes, names without the prefix
	}{
		{"udp", lease.Attrs{PublicIP: a4}, nil,
			`{"backend-data":"null","backend-type":"","kube-subnet-manager":"true","public-ip":"192.0.2.1"}`},
		{"vxlan", lease.Attrs{PublicIP: a4, BackendType: "vxlan", BackendData: data}, nil,
			`{"backend-data":"{\"VNI\":1,\"VtepMAC\":\"0a:00:00:00:00:01\"}","backend-type":"vxlan",` +
				`"kube-subnet-manager":"true","public-ip":"192.0.2.1"}`},
		{"vxlan dual", lease.Attrs{PublicIP: a4, PublicIPv6: a6, BackendType: "vxlan", BackendData: data,
			BackendV6Data: data6}, nil,
			`{"backend-data":"{\"VNI\":1,\"VtepMAC\":\"0a:00:00:00:00:01\"}","backend-type":"vxlan",` +
				`"backend-v6-data":"{\"VNI\":1,\"VtepMAC\":\"0a:00:00:00:00:02\"}","kube-subnet-manager":"true",` +
				`"public-ip":"192.0.2.1","public-ipv6":"2001:db8::1"}`},
		{"vxlan over IPv6 only", lease.Attrs{PublicIPv6: a6, BackendType: "vxlan", BackendV6Data: data6}, nil,
			`{"backend-type":"vxlan","backend-v6-data":"{\"VNI\":1,\"VtepMAC\":\"0a:00:00:00:00:02\"}",` +
				`"kube-subnet-manager":"true","public-ipv6":"2001:db8::1"}`},
		{"host-gw dual", lease.Attrs{PublicIP: a4, PublicIPv6: a6, BackendType: "host-gw"}, nil,
			`{"backend-data":"null","backend-type":"host-gw","backend-v6-data":"null",` +
				`"kube-subnet-manager":"true","public-ip":"192.0.2.1","public-ipv6":"2001:db8::1"}`},
		{"wireguard without an IPv6 device",
			lease.Attrs{PublicIP: a4, BackendType: "wireguard", BackendData: data}, nil,
			`{"backend-data":"{\"VNI\":1,\"VtepMAC\":\"0a:00:00:00:00:01\"}","backend-type":"wireguard",` +
				`"kube-subnet-manager":"true","public-ip":"192.0.2.1"}`},
		{"fast path", lease.Attrs{PublicIP: a4, FastPath: true}, nil,
			`{"backend-data":"null","backend-type":"","kube-subnet-manager":"true","public-ip":"192.0.2.1",` +
				`"weft-fast-path":"true"}`},
		{"fast path withdrawn", lease.Attrs{PublicIP: a4}, map[string]string{
			"backend-data": "null", "backend-type": "", "kube-subnet-manager": "true", "public-ip": "192.0.2.1",
			"weft-fast-path": "true"}, `{"weft-fast-path":null}`},
		{"unchanged", lease.Attrs{PublicIP: a4}, map[string]string{
			"backend-data": "null", "backend-type": "", "kube-subnet-manager": "true", "public-ip": "192.0.2.1",
			"other": "stays"}, `{}`},
		{"IPv6 of an earlier config removed", lease.Attrs{PublicIP: a4}, map[string]string{
			"backend-data": "null", "backend-type": "host-gw", "kube-subnet-manager": "true", "public-ip": "192.0.2.9",
			"backend-v6-data": "null", "public-ipv6": "2001:db8::1"},
			`{"backend-type":"","backend-v6-data":null,"public-ip":"192.0.2.1","public-ipv6":null}`},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			bare := map[string]any{}
			for name, value := range annotationChanges(annotatedNode(test.had), defaultNames(t), test.attrs) {
				bare[strings.TrimPrefix(name, FlannelPrefix+"/")] = value
			}
			got, err := json.Marshal(bare)
			if err != nil {
				t.Fatal(err)
			}
			if string(got) != test.want {
				t.Errorf("got  %s\nwant %s", got, test.want)
			}
		})
	}
}

func TestPublishedOverwrite(t *testing.T) {
	own := lease.Attrs{PublicIP: netip.MustParseAddr("192.0.2.1"), PublicIPv6: netip.MustParseAddr("2001:db8::1")}
	names := defaultNames(t)
	got, err := published(annotatedNode(map[string]string{"public-ip-overwrite": "198.51.100.1"}), names, own)
	if err != nil || got.PublicIP != netip.MustParseAddr("198.51.100.1") || got.PublicIPv6 != own.PublicIPv6 {
		t.Errorf("got %v and %v, %v", got.PublicIP, got.PublicIPv6, err)
	}
	got, err = published(annotatedNode(map[string]string{"public-ipv6-overwrite": "2001:db8::9",
		"public-ip-overwrite": "nat"}), names, own)
	if err == nil || got.PublicIP != own.PublicIP || got.PublicIPv6 != netip.MustParseAddr("2001:db8::9") {
		t.Errorf("got %v and %v, %v", got.PublicIP, got.PublicIPv6, err)
	}
}

// FuzzLeaseOf checks that arbitrary annotations never give an invalid lease.
func FuzzLeaseOf(f *testing.F) {
	f.Add("10.244.1.0/24", "fd00:10:244:1::/64", "192.0.2.1", "2001:db8::1", "vxlan", `{"VNI":1}`, "null")
	f.Add("fd00:10:244:1::/64", "", "::ffff:192.0.2.1", "fe80::1%eth0", "", "", "{")
	f.Add("0.0.0.0/0", "::/0", "0.0.0.0", "ff02::1", "host-gw", "null", "1")
	names := defaultNames(f)
	dual := network(f, dualConf)
	f.Fuzz(func(t *testing.T, cidr, cidr2, public, public6, backend, data, data6 string) {
		n := annotatedNode(map[string]string{"kube-subnet-manager": "true", "public-ip": public, "public-ipv6": public6,
			"backend-type": backend, "backend-data": data, "backend-v6-data": data6}, cidr, cidr2)
		l, ok, _ := leaseOf(n, names, dual)
		if !ok {
			return
		}
		if !l.Public().IsValid() || !l.Subnet.IsValid() && !l.Subnet6.IsValid() {
			t.Fatalf("lease without address or subnet: %+v", l)
		}
		for _, f := range families() {
			subnet, public, data := f.fields(&l)
			if in := f.network(dual); subnet.IsValid() &&
				(*subnet != subnet.Masked() || subnet.Bits() < in.Bits() || !in.Contains(subnet.Addr())) {
				t.Errorf("subnet %s of network %s", subnet, in)
			}
			if public.IsValid() && (public.BitLen() != f.bits || public.Is4In6() || public.Zone() != "" ||
				public.IsUnspecified() || public.IsMulticast()) {
				t.Errorf("%s address %s", f.name, public)
			}
			if *data != nil && !json.Valid(*data) {
				t.Errorf("data %q", *data)
			}
		}
	})
}
