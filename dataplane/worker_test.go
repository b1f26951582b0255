package dataplane

import (
	"fmt"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"weft/dataplane/fib"
	"weft/dataplane/tun"
	"weft/dataplane/udp"
)

// TestSocketReplacedWhileFull expects that packets that wait for room in the old socket are counted
// as dropped.
func TestSocketReplacedWhileFull(t *testing.T) {
	for name, lose := range map[string]func(*harness, *fakeSocket){
		"rebound": func(h *harness, next *fakeSocket) { h.nextUDP.Store(&udpPort{udpSocket: next}) },
		"lost": func(h *harness, next *fakeSocket) {
			h.socket.recvErr = errRejected
			h.round()
			h.nextUDP.Store(&udpPort{udpSocket: next})
		},
	} {
		h := newHarness(t)
		h.socket.full = 1000
		pkt := packetBetween("10.5.1.2", "10.5.2.2")
		h.fromTUN(pkt, pkt)
		next := newFakeSocket()
		lose(h, next)
		h.fromTUN(pkt)
		if d := h.drops(); len(d) != 1 || d[DropNoRoom] != 2 || len(next.sent) != 1 || h.blocked {
			t.Errorf("%s: drops %v, sent %d, blocked %v", name, d, len(next.sent), h.blocked)
		}
		if s := h.engine.Stats(); s.Sent.Packets != 1 {
			t.Errorf("%s: sent %+v", name, s.Sent)
		}
	}
}

// TestDeviceAndSocketLost expects that a worker that loses one end goes on with the other, reports
// the loss, and uses the replacement.
func TestDeviceAndSocketLost(t *testing.T) {
	h := newHarness(t)
	h.tunPort.generation, h.udpPort.generation = 7, 8
	h.queue.readErr = tun.ErrGone
	h.fromUDP("192.0.2.2", packetBetween("10.5.2.2", "10.5.1.2"))
	if h.tunPort != nil || h.engine.lostDevice.Load() != 7 || h.drops()[DropTUNWriteError] != 1 {
		t.Fatalf("queue %v, reported %d, drops %v", h.tunPort, h.engine.lostDevice.Load(), h.drops())
	}
	h.socket.recvErr = errRejected
	h.round()
	if h.udpPort != nil || h.engine.lostSocket.Load() != 8 {
		t.Fatalf("socket %v, reported %d", h.udpPort, h.engine.lostSocket.Load())
	}
	h.round() // with neither

	queue, socket := &fakeQueue{}, newFakeSocket()
	h.nextTUN.Store(&tunPort{queues: [numClasses]tunQueue{queue, &fakeQueue{}}})
	h.nextUDP.Store(&udpPort{udpSocket: socket})
	h.queue, h.socket = queue, socket
	h.fromTUN(packetBetween("10.5.1.2", "10.5.2.2"))
	h.fromUDP("192.0.2.2", packetBetween("10.5.2.2", "10.5.1.2"))
	if len(socket.sent) != 1 || len(queue.out) != 1 {
		t.Errorf("with the replacements: sent %d, wrote %d", len(socket.sent), len(queue.out))
	}
}

// TestLateLossReport has one worker report the loss of old sockets after another one has lost the
// new ones.
func TestLateLossReport(t *testing.T) {
	e, err := newEngine(Config{Device: "test0", Bind: netip.MustParseAddrPort("127.0.0.1:0"), Workers: 2})
	must(t, err)
	defer func() { must(t, e.Close()) }()
	e.deviceGeneration = 1 // never lost
	must(t, e.repair())
	quick, slow := e.workers[0], e.workers[1]
	quick.pickUpReplacements()
	slow.pickUpReplacements()
	quick.udpLost()
	must(t, e.repair())
	quick.pickUpReplacements()
	quick.udpLost()
	slow.udpLost()
	must(t, e.repair())
	for i, w := range e.workers {
		if w.pickUpReplacements(); w.udpPort == nil {
			t.Errorf("worker %d has no socket", i)
		}
	}
}

// TestDeviceDeletedWhileBlocked expects that a worker that does not read the TUN detects the loss.
func TestDeviceDeletedWhileBlocked(t *testing.T) {
	var pipe [2]int
	must(t, unix.Pipe2(pipe[:], unix.O_CLOEXEC))
	must(t, unix.Close(pipe[0]))
	defer unix.Close(pipe[1])
	h := newHarness(t)
	h.queue.fd = pipe[1] // poll reports POLLERR on a pipe without a reader
	h.socket.full = 1000
	h.fromTUN(packetBetween("10.5.1.2", "10.5.2.2"))
	must(t, h.wait())
	if !h.blocked || h.tunPort != nil {
		t.Errorf("blocked %v, queue %v", h.blocked, h.tunPort)
	}
}

// TestTUNNotPolledWhileBlocked expects that frames in the TUN do not wake a worker that cannot
// send.
func TestTUNNotPolledWhileBlocked(t *testing.T) {
	fds := readable(t)
	polled := func(h *harness) int {
		t.Helper()
		h.queue.fd = int(fds[0].Fd)
		h.setPollFDs()
		n, err := unix.Poll(h.pollFDs[:], 0)
		must(t, err)
		return n
	}
	h := newHarness(t)
	if n := polled(h); n != 1 {
		t.Errorf("%d descriptors are ready, want 1", n)
	}
	h.socket.full = 1
	h.fromTUN(packetBetween("10.5.1.2", "10.5.2.2"))
	if n := polled(h); !h.blocked || n != 0 {
		t.Errorf("blocked %v: %d descriptors are ready", h.blocked, n)
	}
	h.round()
	if n := polled(h); h.blocked || n != 1 {
		t.Errorf("blocked %v: %d descriptors are ready", h.blocked, n)
	}
	h.socket.recvErr = errRejected
	h.round()
	if n := polled(h); h.udpPort != nil || n != 0 {
		t.Errorf("socket %v: %d descriptors are ready", h.udpPort, n)
	}
}

func TestDeviceDeletedDuringWrite(t *testing.T) {
	h := newHarness(t)
	h.queue.writeErr = tun.ErrGone
	h.fromUDP("192.0.2.2", packetBetween("10.5.2.2", "10.5.1.2"), packetBetween("10.5.2.3", "10.5.1.2"))
	if h.tunPort != nil || h.drops()[DropTUNWriteError] != 2 {
		t.Errorf("queue %v, drops %v", h.tunPort, h.drops())
	}
}

func TestForwardAllocations(t *testing.T) {
	small, big := udp4("10.5.1.2", "10.5.2.2", 0, 64, 0), gsoTCP("10.5.1.2", "10.5.2.2", 60_000, 1348)
	var train []byte
	for i := range 40 {
		train = append(train, tcp4("10.5.2.2", "10.5.1.2", uint32(i)*1348, 1348)...)
	}
	for name, frame := range map[string]tun.Frame{"small packets": {Packet: small}, "GSO frames": big} {
		h := newHarness(t)
		h.queue.repeat, h.socket.repeat = true, true
		h.queue.in = []tun.Frame{frame}
		h.socket.buf = make([]byte, 65536)
		slot := message("192.0.2.2", 1388, train)
		h.socket.in = [][]udp.Message{{slot}}
		if n := testing.AllocsPerRun(50, func() {
			copy(slot.Data, train) // merging has moved the payloads
			h.round()
		}); n != 0 {
			t.Errorf("%s: %v allocations per round of %d frames", name, n, quantumFrames)
		}
		if h.queue.writes == 0 {
			t.Errorf("%s: nothing received, drops %v", name, h.drops())
		}
	}
}

func TestDropAllocations(t *testing.T) {
	h := newHarness(t)
	h.queue.repeat = true
	h.queue.in = []tun.Frame{{Packet: packetBetween("10.5.1.2", "10.5.9.9")}}
	if n := testing.AllocsPerRun(50, h.round); n != 0 {
		t.Errorf("%v allocations per round of unreachable packets", n)
	}
}

func BenchmarkOutbound(b *testing.B) {
	for name, frame := range map[string]tun.Frame{
		"udp64":   {Packet: udp4("10.5.1.2", "10.5.2.2", 0, 64, 0)},
		"tcp64KB": gsoTCP("10.5.1.2", "10.5.2.2", 62_000, 1348),
	} {
		b.Run(name, func(b *testing.B) {
			w := newHarness(b)
			w.queue.repeat, w.socket.repeat = true, true
			w.queue.in = []tun.Frame{frame}
			w.socket.buf = make([]byte, 65536)
			b.SetBytes(int64(quantumFrames * len(frame.Packet)))
			b.ReportAllocs()
			for b.Loop() {
				w.round()
			}
		})
	}
}

// BenchmarkSourceCheck measures the worst case: each packet comes from another node than the last
// one.
func BenchmarkSourceCheck(b *testing.B) {
	for _, nodes := range []int{1, 100, 10_000} {
		b.Run(fmt.Sprint(nodes), func(b *testing.B) {
			w := newHarness(b)
			others := make([]fib.Node, nodes)
			packets := make([][]byte, nodes)
			for i := range others {
				others[i] = fib.Node{
					Name:     fmt.Sprint(i),
					Endpoint: netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 1, byte(i >> 8), byte(i)}), 8285),
					Prefixes: []netip.Prefix{
						netip.PrefixFrom(netip.AddrFrom4([4]byte{11, byte(i >> 8), byte(i), 0}), 24),
					},
				}
				packets[i] = packetBetween(fmt.Sprintf("11.%d.%d.2", i>>8, i&255), "10.5.1.2")
			}
			w.engine.SetNodes(selfNode, others)
			w.snapshot = w.engine.snapshot.Load()
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				from := others[i%nodes].Endpoint.Addr()
				if w.sender(from) == nil || w.checkInner(packets[i%nodes], from, CheckKnown) != dropNone {
					b.Fatal("packet rejected")
				}
			}
		})
	}
}
