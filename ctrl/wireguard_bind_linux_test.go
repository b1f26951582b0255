package ctrl

import (
	"bytes"
	"log/slog"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"
)

// scriptedBind fails to send trains of packets, or from remembered sources.
type scriptedBind struct {
	conn.Bind
	refused unix.Errno
	sent    [][]byte
	stale   conn.Endpoint
}

func (b *scriptedBind) Send(bufs [][]byte, ep conn.Endpoint) error {
	if b.refused == unix.EMSGSIZE && len(bufs) > 1 || b.refused != unix.EMSGSIZE && ep == b.stale {
		return os.NewSyscallError("sendmmsg", b.refused)
	}
	b.sent = append(b.sent, bufs...)
	return nil
}

func TestWireGuardSendAfterRefusal(t *testing.T) {
	packets := [][]byte{{1}, {2}, {3}}
	for _, test := range []struct {
		refused unix.Errno
		sent    int
	}{{unix.EMSGSIZE, 3}, {unix.EINVAL, 3}, {unix.EADDRNOTAVAIL, 3}, {unix.EPERM, 0}} {
		b := &scriptedBind{Bind: conn.NewDefaultBind(), refused: test.refused}
		var err error
		if b.stale, err = b.ParseEndpoint("192.0.2.1:51820"); err != nil {
			t.Fatal(err)
		}
		err = wireguardBind{b}.Send(packets, b.stale)
		if !slices.EqualFunc(b.sent, packets[:test.sent], bytes.Equal) || (err == nil) != (test.sent > 0) {
			t.Errorf("%v: sent %v, %v", test.refused, b.sent, err)
		}
	}
}

func TestRepeatFilterSameText(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		f := repeatFilter{log: slog.New(slog.NewTextHandler(&log, nil))}
		for _, msg := range []string{"a", "a", "b", "a"} {
			f.warn(msg)
		}
		time.Sleep(repeatInterval)
		f.warn("a")
		if n := strings.Count(log.String(), "\n"); n != 4 {
			t.Errorf("%d messages, want 4:\n%s", n, &log)
		}
	})
}
