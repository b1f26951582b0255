package filter

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/net/bpf"
)

// expressions are filters of every kind of primitive and operator.
func expressions() []string {
	return strings.Split(strings.TrimSpace(`
ip
ip6
tcp
udp
sctp
icmp
icmp6
arp or udp
host 10.5.1.2
src host 10.5.1.2
dst host 10.5.1.2
src or dst host 10.5.1.2
src and dst host 10.5.1.2
host fd00:5:1::2
ip6 host fd00:5:1::2
ip host 10.5.1.2 or 10.5.2.2
net 10.5.0.0/16
net 10.5
src net 10.5.1.0/25
net 10.5.1.0 mask 255.255.255.0
dst net fd00:5:1::/63
ip6 net fd00:5:1::/64
port 80
tcp port 80
udp port domain
src port 80
tcp src port 80 or 443
tcp dst port http
ip6 and port 53
portrange 50-100
udp src portrange 50-100
tcp port 80 and host 10.5.1.2
not tcp
! udp and not icmp
not host 10.5.1.2 and port 80
tcp or udp and host 10.5.1.2
(tcp or udp) and (host 10.5.1.2 or src port 53)
ip proto 17
ip6 proto 6
proto 6
ip proto \tcp
proto \udp
less 60
greater 61
len > 60
len - 20 <= 40
ip[8] < 10
ip[9] = 6
ip[2:2] > 60
ip[12:4] = 0x0a050102
ip6[6] == 17
tcp[13] & 2 != 0
tcp[tcpflags] & (tcp-syn|tcp-ack) == tcp-syn
tcp[tcpflags] & tcp-syn != 0 or port 53
udp[4:2] > 20
udp[0:2] = 53
icmp[icmptype] == icmp-echo
icmp[icmptype] != icmp-echo and icmp[icmptype] != icmp-echoreply
icmp6[icmp6type] = icmp6-echo
tcp[((tcp[12] & 0xf0) >> 2):4] = 0x47455420
ip[0] & 0xf != 5
ip[6:2] & 0x1fff != 0
(ip[2:2] - ((ip[0]&0xf)<<2)) * 2 > 100
ip[8] / 2 > 20 && ip[8] % 2 == 1
ip multicast
ip6 multicast
not (tcp[13] = 2)
tcp && !(port 80 || port 443)
`), "\n")
}

// packets returns well-formed packets of all kinds that the expressions tell apart.
func packets(r *rand.Rand) [][]byte {
	var all [][]byte
	v4 := []string{"10.5.1.2", "10.5.2.2", "10.5.1.200", "10.6.0.1", "224.0.0.251"}
	v6 := []string{"fd00:5:1::2", "fd00:5:2::2", "ff02::fb"}
	for range 400 {
		proto := []uint8{1, 6, 17, 58, 132, 47}[r.IntN(6)]
		upper := make([]byte, 20+r.IntN(100))
		for i := range upper {
			upper[i] = byte(r.Uint32())
		}
		ports := []uint16{53, 80, 443, 99, 5000}
		binary.BigEndian.PutUint16(upper, ports[r.IntN(5)])
		binary.BigEndian.PutUint16(upper[2:], ports[r.IntN(5)])
		switch proto {
		case 6:
			upper[12], upper[13] = 5<<4, []byte{2, 18, 16, 24}[r.IntN(4)]
			if len(upper) > 24 {
				copy(upper[20:], "GET ")
			}
		case 1, 58:
			upper[0] = []byte{0, 3, 8, 128, 129}[r.IntN(5)]
		}
		if r.IntN(3) == 0 {
			all = append(all, ipv6(v6[r.IntN(3)], v6[r.IntN(3)], proto, upper))
			continue
		}
		p := ipv4(v4[r.IntN(5)], v4[r.IntN(5)], proto, upper)
		p[8] = byte(r.Uint32())
		if r.IntN(8) == 0 { // options
			p = slices.Insert(p, 20, 1, 1, 1, 0)
			p[0] = 0x46
			binary.BigEndian.PutUint16(p[2:], uint16(len(p)))
		}
		if r.IntN(8) == 0 {
			binary.BigEndian.PutUint16(p[6:], uint16(r.IntN(3)*100))
		}
		all = append(all, p)
	}
	return all
}

func ipv4(src, dst string, proto uint8, upper []byte) []byte {
	p := make([]byte, 20, 20+len(upper))
	p[0], p[9] = 0x45, proto
	binary.BigEndian.PutUint16(p[2:], uint16(20+len(upper)))
	copy(p[12:], netip.MustParseAddr(src).AsSlice())
	copy(p[16:], netip.MustParseAddr(dst).AsSlice())
	return append(p, upper...)
}

func ipv6(src, dst string, proto uint8, upper []byte) []byte {
	p := make([]byte, 40, 40+len(upper))
	p[0], p[6] = 0x60, proto
	binary.BigEndian.PutUint16(p[4:], uint16(len(upper)))
	copy(p[8:], netip.MustParseAddr(src).AsSlice())
	copy(p[24:], netip.MustParseAddr(dst).AsSlice())
	return append(p, upper...)
}

// TestMatchEqualsLibpcap compares each expression with the program that libpcap compiles for it.
func TestMatchEqualsLibpcap(t *testing.T) {
	tcpdump, err := exec.LookPath("tcpdump")
	if err != nil {
		t.Skip("NOT TESTED: comparison with libpcap: no tcpdump")
	}
	all := packets(rand.New(rand.NewPCG(1, 2)))
	for _, expression := range expressions() {
		f, err := Parse(expression)
		if err != nil {
			t.Error(err)
			continue
		}
		m, vm := f.Matcher(), compile(t, tcpdump, expression)
		matches := 0
		for _, p := range all {
			n, err := vm.Run(p)
			if err != nil {
				t.Fatal(err)
			}
			got := m.Match(p, false)
			if got != (n > 0) {
				t.Errorf("%s: got %v for % x", expression, got, p)
				break
			}
			if got {
				matches++
			}
		}
		if matches == len(all) || matches == 0 {
			t.Errorf("%s: matches %d of %d packets: proves nothing", expression, matches, len(all))
		}
	}
}

// compile returns libpcap's program for packets without a link layer.
func compile(t *testing.T, tcpdump, expression string) *bpf.VM {
	t.Helper()
	out, err := exec.Command(tcpdump, "-ddd", "-y", "RAW", expression).Output()
	if err != nil {
		t.Fatalf("tcpdump -ddd %s: %v", expression, err)
	}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")[1:]
	raw := make([]bpf.RawInstruction, len(lines))
	for i, line := range lines {
		if _, err := fmt.Sscan(line, &raw[i].Op, &raw[i].Jt, &raw[i].Jf, &raw[i].K); err != nil {
			t.Fatalf("line %s of %s: %v", strconv.Quote(line), expression, err)
		}
	}
	program, ok := bpf.Disassemble(raw)
	if !ok {
		t.Fatalf("%s: unknown instruction in %v", expression, program)
	}
	vm, err := bpf.NewVM(program)
	if err != nil {
		t.Fatal(err)
	}
	return vm
}

func TestMatchDirection(t *testing.T) {
	for expression, outbound := range map[string]bool{"inbound": false, "outbound": true} {
		f, err := Parse(expression)
		if err != nil {
			t.Fatal(err)
		}
		m := f.Matcher()
		if !m.Match(ipv4("10.5.1.2", "10.5.2.2", 6, nil), outbound) ||
			m.Match(ipv4("10.5.1.2", "10.5.2.2", 6, nil), !outbound) {
			t.Errorf("%s matches the wrong direction", expression)
		}
	}
}

func TestParseInvalid(t *testing.T) {
	for _, expression := range []string{
		"foo", "host", "host example.com", "port", "port 70000", "port nosuchservice", "net 10.5.1.2/8",
		"net 10.0.0.0/33", "net 10.0.0.0 mask 255.0.255.0", "tcp host 10.0.0.1", "icmp port 80",
		"(tcp", "tcp)", "not", "tcp and", "tcp[", "tcp[13", "tcp[13:3] = 1", "tcp[13] &", "ether[0] = 1",
		"tcp[13] = ", "portrange 80", "multicast", "ip proto foo", "less x", "#", "tcp 80",
		"ip6 host 10.0.0.1", strings.Repeat("(", 5000), strings.Repeat("not ", 500) + "tcp",
		strings.Repeat("tcp and ", 2000) + "tcp",
	} {
		if _, err := Parse(expression); err == nil {
			t.Errorf("%.60q accepted", expression)
		}
	}
}

func TestMatchDoesNotAllocate(t *testing.T) {
	p := ipv4("10.5.1.2", "10.5.2.2", 6, make([]byte, 40))
	for _, expression := range expressions() {
		f, err := Parse(expression)
		if err != nil {
			t.Fatal(err)
		}
		m := f.Matcher()
		if n := testing.AllocsPerRun(100, func() { m.Match(p, true) }); n != 0 {
			t.Errorf("%s: %v allocations", expression, n)
		}
	}
}

// FuzzMatch runs any expression on any packet: neither may panic, and parsing must end.
func FuzzMatch(f *testing.F) {
	for i, p := range packets(rand.New(rand.NewPCG(3, 4)))[:len(expressions())] {
		f.Add(expressions()[i], p)
	}
	f.Fuzz(func(_ *testing.T, expression string, pkt []byte) {
		if filter, err := Parse(expression); err == nil {
			filter.Matcher().Match(pkt, true)
		}
	})
}

func BenchmarkMatch(b *testing.B) {
	f, err := Parse("tcp port 80 and net 10.5.0.0/16")
	if err != nil {
		b.Fatal(err)
	}
	m, p := f.Matcher(), ipv4("10.5.1.2", "10.5.2.2", 6, make([]byte, 1400))
	for b.Loop() {
		m.Match(p, true)
	}
}
