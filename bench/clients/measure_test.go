package clients

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "serve" {
		if err := Serve(os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

func TestMeasure(t *testing.T) {
	var out strings.Builder
	o := Options{Etcd: []string{os.Args[0], "serve"}, Clients: 3, Leases: 150, Spread: 100 * time.Millisecond,
		Duration: 100 * time.Millisecond, Outage: 100 * time.Millisecond, Patience: time.Minute}
	rows, err := Measure(t.Context(), o, io.Discard)
	if err := errors.Join(err, WriteTable(&out, o, rows)); err != nil {
		t.Fatal(err)
	}
	for _, row := range []string{"start", "without changes", "outage and return", "restart of all"} {
		if !strings.Contains(out.String(), "| "+row+" | ") {
			t.Errorf("no row %q in\n%s", row, out.String())
		}
	}
	o.Etcd = []string{"/nonexistent"}
	if _, err := Measure(t.Context(), o, io.Discard); err == nil {
		t.Error("measured without etcd")
	}
}
