package lease

import (
	"log/slog"
	"strings"
	"testing"
	"time"
)

func TestExpiryLogAttr(t *testing.T) {
	at := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	var b strings.Builder
	log := slog.New(slog.NewTextHandler(&b, nil))
	log.Info("never", expiry(Lease{}))
	log.Info("then", expiry(Lease{Expires: at}))
	if got := b.String(); strings.Count(got, "expires=") != 1 || !strings.Contains(got, "msg=then expires=2030-01-01") {
		t.Error(got)
	}
}
