package conntest

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestExplain compares the reasons for combinations of failures. Checks that are not named passed.
func TestExplain(t *testing.T) {
	timeout := probed{err: os.ErrDeadlineExceeded}
	noEcho := probed{err: errNoAnswer}
	silent := map[Check]probed{PodToPod: noEcho, Large: noEcho, TCP: timeout, Fragments: timeout,
		PodToHost: noEcho, HostToPod: noEcho}
	without := func(c Check) map[Check]probed {
		most := map[Check]probed{}
		for name, f := range silent {
			if name != c {
				most[name] = f
			}
		}
		return most
	}
	for _, test := range []struct {
		name     string
		found    map[Check]probed
		underlay *probed
		check    Check
		want     string
	}{
		{"down", silent, &noEcho, TCP, "b does not answer on the underlay (192.0.2.2) either"},
		{"blocked", silent, &probed{}, PodToPod, "b answers on the underlay (192.0.2.2), not through the overlay"},
		{"no underlay address", silent, nil, PodToPod, "b does not answer through the overlay"},
		{"forwarding there", without(PodToHost), &probed{}, PodToPod, "b does not forward to its pods"},
		{"forwarding here", without(HostToPod), &probed{}, PodToPod, "a does not forward for its pods"},
		{"ICMP dropped", map[Check]probed{PodToPod: noEcho}, &probed{}, PodToPod, "drops ICMP"},
		{"TCP dropped", map[Check]probed{TCP: timeout}, &probed{}, TCP, "ping passes, no answer to TCP"},
		{"TCP refused", map[Check]probed{TCP: {err: unix.ECONNREFUSED}}, &probed{}, TCP, "rejects it"},
		{"data changed", map[Check]probed{TCP: {err: fmt.Errorf("%w on the way there", errDiffers)}}, &probed{}, TCP,
			"changed on the way there"},
		{"narrow path", map[Check]probed{Large: {err: errNoAnswer, size: 1472, tooBig: 1372}}, &probed{}, Large,
			"packets of 1472 bytes, the MTU of pods, do not fit: an ICMP error reports a path MTU of 1372"},
		{"black hole", map[Check]probed{Large: {err: errNoAnswer, size: 1472, fits: 1371}}, &probed{}, Large,
			"packets of up to 1371 bytes pass"},
		{"stalled", map[Check]probed{TCP: {err: errStalled}, Large: noEcho}, &probed{}, TCP, "large packets are lost"},
		{"stalled alone", map[Check]probed{TCP: {err: errStalled}}, &probed{}, TCP, "the data stalled"},
		{"fragments dropped", map[Check]probed{Fragments: timeout}, &probed{}, Fragments, "drops UDP or fragments"},
		{"another error", map[Check]probed{HostToPod: {err: errors.New("odd")}}, &probed{}, HostToPod, "odd"},
		{"no server", map[Check]probed{TCP: {skipped: "not there"}}, &probed{}, TCP, "not there"},
	} {
		found := map[Check]probed{}
		for _, c := range checks() {
			found[c] = test.found[c]
		}
		p := pair{Source: Source{Node: "a"}, Target: Target{Node: "b", Public: netip.MustParseAddr("192.0.2.2")},
			family: ipv4}
		for _, r := range p.results(found, test.underlay) {
			failed := test.found[r.Check] != probed{}
			if failed == (r.Outcome == Passed) || r.Check == test.check && !strings.Contains(r.Reason, test.want) {
				t.Errorf("%s: %s: %s %q, want %q", test.name, r.Check, r.Outcome, r.Reason, test.want)
			}
		}
	}
}

// TestReplyTo checks that only requests are answered.
func TestReplyTo(t *testing.T) {
	if len(requestHead) != len(replyHead) || len(workersHead) != len(replyHead) {
		t.Error("the heads differ in length")
	}
	var reply []byte
	for head, want := range map[string]int{requestHead: 0, workersHead: workerTOS} {
		var tos int
		var ok bool
		reply, tos, ok = replyTo([]byte(head + "x"))
		if !ok || tos != want || string(reply) != replyHead+"x" {
			t.Errorf("%q: %q, TOS %#x, %t", head, reply, tos, ok)
		}
	}
	for _, other := range []string{"", "x", string(reply)} {
		if _, _, ok := replyTo([]byte(other)); ok {
			t.Errorf("%q is answered", other)
		}
	}
}

func TestLastAddr(t *testing.T) {
	for prefix, want := range map[string]string{
		"10.5.1.1/24": "10.5.1.255", "10.5.0.0/22": "10.5.3.255", "fd00::1/64": "fd00::ffff:ffff:ffff:ffff"} {
		if got := lastAddr(netip.MustParsePrefix(prefix)); got.String() != want {
			t.Errorf("%s: %s", prefix, got)
		}
	}
}
