package etcd

import (
	"encoding/json"
	"net/netip"
	"reflect"
	"testing"

	"go.etcd.io/etcd/api/v3/mvccpb"

	"weft/lease"
)

func TestParseKey(t *testing.T) {
	tests := []struct{ key, subnet, subnet6 string }{
		{"10.12.13.0-24", "10.12.13.0/24", ""},
		{"10.5.1.0-24&fd10:5:0:40::-64", "10.5.1.0/24", "fd10:5:0:40::/64"},
		{"10.12.13.0-24&fd00:12:13::-56", "10.12.13.0/24", "fd00:12:13::/56"},
		{"0.0.0.0-0&fd10:5:0:40::-64", "", "fd10:5:0:40::/64"},
		{"10.5.0.4-30", "10.5.0.4/30", ""},
		{"10.5.0.4-31", "10.5.0.4/31", ""},
		{"10.5.0.5-32", "10.5.0.5/32", ""},
		{"10.5.0.4-30&fd10::4-126", "10.5.0.4/30", "fd10::4/126"},
		{"10.5.0.4-30&fd10::4-127", "10.5.0.4/30", "fd10::4/127"},
		{"10.5.0.4-30&fd10::5-128", "10.5.0.4/30", "fd10::5/128"},
		{"128.0.0.0-1&8000::-1", "128.0.0.0/1", "8000::/1"},
	}
	for _, test := range tests {
		l, err := parseKey(test.key)
		if err != nil {
			t.Errorf("%s: %v", test.key, err)
			continue
		}
		if l.Subnet != prefix(test.subnet) || l.Subnet6 != prefix(test.subnet6) {
			t.Errorf("%s: got %s and %s", test.key, l.Subnet, l.Subnet6)
		}
		if again := formatKey(l); again != test.key {
			t.Errorf("%s formatted again as %s", test.key, again)
		}
	}
}

func prefix(s string) netip.Prefix {
	if s == "" {
		return netip.Prefix{}
	}
	return netip.MustParsePrefix(s)
}

func TestParseKeyErrors(t *testing.T) {
	for _, key := range []string{
		"", "foo", "10", "10.12.13.0", "10.12.13-24", "10.12.13.300-24", "10.12.13.0-24hi", "hi10.12.13.0-24",
		"a/10.12.13.0-24",
		"10.12.13.0-24&2001::-56hi", "10.12.13.0-24&:12:13:-56", "10.12.13.0-24&20011::-56", "10.12.13.0-24&2001-56",
		"10.12.13.0-24&2001::", "10.12.13.0-24&", "&2001::-56", "10.12.13.0-33", "10.12.13.0-024", "10.12.13.0--24",
		"10.12.13.0/24", "10.12.13.5-24", "0.0.0.0-0", "10.0.0.0-0", "2001::-56", "10.12.13.0-24&10.0.0.0-8",
		"10.12.13.0-24&FD00::-56",
		"10.12.13.0-24&fd00::0-56", "10.12.13.0-24&::ffff:10.0.0.0-120", "10.12.13.0-24&fe80::1%eth0-128",
		"10.12.13.0-24&fd00::-64&fd01::-64",
	} {
		if l, err := parseKey(key); err == nil {
			t.Errorf("%q parsed as %s %s", key, l.Subnet, l.Subnet6)
		}
	}
}

// TestValues uses values written by a running flannel.
func TestValues(t *testing.T) {
	tests := []struct {
		value string
		attrs lease.Attrs
	}{
		{`{"PublicIP":"172.31.0.1","PublicIPv6":null}`, lease.Attrs{PublicIP: netip.MustParseAddr("172.31.0.1")}},
		{`{"PublicIP":"0.0.0.0","PublicIPv6":"fd31::1"}`, lease.Attrs{PublicIPv6: netip.MustParseAddr("fd31::1")}},
		{`{"PublicIP":"172.31.0.1","PublicIPv6":null,"BackendType":"host-gw"}`,
			lease.Attrs{PublicIP: netip.MustParseAddr("172.31.0.1"), BackendType: "host-gw"}},
		{`{"PublicIP":"172.31.0.1","PublicIPv6":"fd31::1","BackendType":"vxlan",` +
			`"BackendData":{"VNI":1,"VtepMAC":"9a:71:00:00:00:01"},` +
			`"BackendV6Data":{"VNI":1,"VtepMAC":"9a:71:00:00:00:02"}}`,
			lease.Attrs{
				PublicIP: netip.MustParseAddr("172.31.0.1"), PublicIPv6: netip.MustParseAddr("fd31::1"),
				BackendType:   "vxlan",
				BackendData:   json.RawMessage(`{"VNI":1,"VtepMAC":"9a:71:00:00:00:01"}`),
				BackendV6Data: json.RawMessage(`{"VNI":1,"VtepMAC":"9a:71:00:00:00:02"}`),
			}},
	}
	for _, test := range tests {
		b, err := formatValue(test.attrs)
		if err != nil || string(b) != test.value {
			t.Errorf("got  %s, %v\nwant %s", b, err, test.value)
		}
		got, err := parseValue([]byte(test.value))
		if err != nil || !reflect.DeepEqual(got, test.attrs) {
			t.Errorf("%s: got %+v, %v", test.value, got, err)
		}
	}
	for _, value := range []string{
		``, `x`, `[]`, `"10.0.0.1"`, `{"PublicIP":5}`, `{"PublicIP":"fd31::1"}`, `{"PublicIPv6":"10.0.0.1"}`,
		`{"PublicIP":"10.0.0"}`,
		`{"PublicIPv6":"fe80::1%eth0"}`, `{"PublicIPv6":"::ffff:10.0.0.1"}`, `{"PublicIP":"10.0.0.1"} x`,
		`{"BackendType":1}`,
	} {
		if got, err := parseValue([]byte(value)); err == nil {
			t.Errorf("%s parsed as %+v", value, got)
		}
	}
	if _, err := formatValue(lease.Attrs{BackendData: json.RawMessage(`{`)}); err == nil {
		t.Error("invalid backend data formatted without an error")
	}
}

func FuzzParseKey(f *testing.F) {
	f.Add("10.5.1.0-24")
	f.Add("10.5.1.0-24&fd10:5:0:40::-64")
	f.Add("0.0.0.0-0&fd10::5-128")
	f.Fuzz(func(t *testing.T, key string) {
		l, err := parseKey(key)
		if err != nil {
			return
		}
		if again := formatKey(l); again != key {
			t.Errorf("%q formatted again as %q", key, again)
		}
		if !l.Subnet.IsValid() && !l.Subnet6.IsValid() {
			t.Errorf("%q parsed without a subnet", key)
		}
	})
}

func FuzzParseValue(f *testing.F) {
	f.Add([]byte(`{"PublicIP":"172.31.0.1","PublicIPv6":null}`))
	f.Add([]byte(`{"PublicIP":"0.0.0.0","PublicIPv6":"fd31::1",` +
		`"BackendType":"vxlan","BackendData":{"VNI":1},"BackendV6Data":null}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		a, err := parseValue(b)
		if err != nil {
			return
		}
		written, err := formatValue(a)
		if err != nil {
			t.Fatalf("%s parsed but cannot be formatted: %v", b, err)
		}
		again, err := parseValue(written)
		if err != nil || again.PublicIP != a.PublicIP || again.PublicIPv6 != a.PublicIPv6 ||
			again.BackendType != a.BackendType {
			t.Errorf("%s parsed as %+v, formatted as %s and parsed as %+v, %v", b, a, written, again, err)
		}
	})
}

func FuzzParseOwner(f *testing.F) {
	f.Add([]byte(`{"id":"0123456789abcdef","node":"host"}`))
	f.Add([]byte(`x`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if o := parseOwner(&mvccpb.KeyValue{Value: b, ModRevision: 3, Lease: 4}); o.mod != 3 || o.leaseID != 4 {
			t.Errorf("%s parsed without revision or lease: %+v", b, o)
		}
	})
}
