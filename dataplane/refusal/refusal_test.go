package refusal

import (
	"context"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"weft/deploy/lab"
)

func TestMain(m *testing.M) { os.Exit(lab.Main(m)) }

// quote4 is a port unreachable about a UDP packet to 192.0.2.9, port 8285.
func quote4() []byte {
	msg := append([]byte{3, 3, 0, 0, 0, 0, 0, 0}, make([]byte, 28)...)
	ip := msg[8:]
	ip[0], ip[9] = 0x45, protoUDP
	copy(ip[16:], []byte{192, 0, 2, 9})
	copy(ip[22:], []byte{8285 >> 8, 8285 & 0xff})
	return msg
}

func quote6() []byte {
	msg := append([]byte{1, 4, 0, 0, 0, 0, 0, 0}, make([]byte, 48)...)
	ip := msg[8:]
	ip[0], ip[6] = 0x60, protoUDP
	copy(ip[24:], netip.MustParseAddr("2001:db8::9").AsSlice())
	copy(ip[42:], []byte{8285 >> 8, 8285 & 0xff})
	return msg
}

func TestParse(t *testing.T) {
	v4, v6 := families()[0], families()[1]
	changed := func(msg []byte, at int, b byte) []byte {
		msg[at] = b
		return msg
	}
	for _, c := range []struct {
		name   string
		family family
		msg    []byte
		port   uint16
		want   string // destination and reason; empty: not a refusal
	}{
		{"IPv4", v4, quote4(), 8285, "192.0.2.9 port unreachable"},
		{"IPv6", v6, quote6(), 8285, "2001:db8::9 port unreachable"},
		{"prohibited", v4, changed(quote4(), 1, 13), 8285, "192.0.2.9 prohibited"},
		{"options", v4, append(changed(quote4(), 8, 0x46)[:28], append(make([]byte, 4), quote4()[28:]...)...), 8285,
			"192.0.2.9 port unreachable"},
		{"IPIP", v4, changed(quote4(), 17, protoIPIP)[:28], 0, "192.0.2.9 port unreachable"},
		{"other port", v4, quote4(), 8472, ""},
		{"other protocol", v4, changed(quote4(), 17, 6), 8285, ""},
		{"path MTU", v4, changed(quote4(), 1, 4), 8285, ""},
		{"echo", v4, changed(quote4(), 0, 8), 8285, ""},
		{"other family", v6, quote4(), 8285, ""},
	} {
		got := ""
		if r, ok := c.family.parse(c.msg, c.port); ok {
			got = r.To.String() + " " + r.Reason
		}
		if got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
	for n := range quote4() {
		v4.parse(quote4()[:n], 8285)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(quote4())
	f.Add(quote6())
	f.Fuzz(func(t *testing.T, msg []byte) {
		for _, family := range families() {
			if r, ok := family.parse(msg, 8285); ok && (!r.To.IsValid() || r.Reason == "") {
				t.Errorf("%+v", r)
			}
		}
	})
}

// The kernel answers a packet to a port without a socket.
func TestNetnsRefusal(t *testing.T) {
	l, err := lab.New(t.Context(), lab.Options{Nodes: 2})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	got := make(chan Refusal, 10)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	from, to := l.Nodes[0], l.Nodes[1]
	done := make(chan error, 1)
	err = from.Do(func() error {
		listeners, err := Listen(8285)
		if err != nil {
			return err
		}
		for _, x := range listeners[1:] {
			x.conn.Close()
		}
		go func() { done <- listeners[0].Run(ctx, func(r Refusal) { got <- r }) }()
		for _, port := range []int{8286, 8285} {
			c, err := net.DialUDP("udp4", nil, &net.UDPAddr{IP: to.Addr.AsSlice(), Port: port})
			if err != nil {
				return err
			}
			defer c.Close()
			if _, err := c.Write([]byte("x")); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	select {
	case r := <-got:
		if want := (Refusal{To: to.Addr, From: to.Addr, Reason: "port unreachable"}); r != want {
			t.Errorf("%+v, want %+v", r, want)
		}
	case <-ctx.Done():
		t.Error("no refusal")
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
