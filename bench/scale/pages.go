package scale

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"
)

// Page is an answer of the daemon on its control socket.
type Page struct {
	Path  string
	Bytes int64
	Time  time.Duration
	CPU   time.Duration
}

// controlSocket is where Weft's daemon has its control socket, below the node's /run. Other daemons
// have none.
const controlSocket = "weft/weftd.sock"

// pages asks the daemon for its status and its metrics.
func (r *run) pages(ctx context.Context, f *Figures) error {
	socket := r.lab.Nodes[0].Path(controlSocket)
	if exists(socket) != nil {
		return nil
	}
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		}}}
	for _, path := range []string{"/v1/status", "/v1/status?nodes=100", "/v1/metrics"} {
		p, err := r.get(ctx, client, path)
		if err != nil {
			return err
		}
		f.Pages = append(f.Pages, p)
	}
	return nil
}

func (r *run) get(ctx context.Context, client *http.Client, path string) (p Page, err error) {
	before, err := r.daemon.CPUTime()
	if err != nil {
		return p, err
	}
	began := time.Now()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://weftd"+path, nil)
	if err != nil {
		return p, err
	}
	answer, err := client.Do(request)
	if err != nil {
		return p, err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return p, fmt.Errorf("%s: %s", path, answer.Status)
	}
	n, err := io.Copy(io.Discard, answer.Body)
	if err != nil {
		return p, err
	}
	took := time.Since(began)
	after, err := r.daemon.CPUTime()
	return Page{path, n, took, after - before}, err
}
