package bench

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"weft/deploy/lab"
)

// Metrics is the values of one scrape, by name and labels in the text format, such as
// weft_packets_total{direction="in"}.
type Metrics map[string]float64

// Scrape reads a daemon's /metrics. The address must be reachable from the lab's root namespace.
func Scrape(ctx context.Context, at netip.AddrPort) (Metrics, error) {
	m, err := scrape(ctx, at)
	if err != nil {
		return nil, fmt.Errorf("read metrics of %s: %w", at, err)
	}
	return m, nil
}

func scrape(ctx context.Context, at netip.AddrPort) (Metrics, error) {
	body, err := Get(ctx, at, "/metrics")
	if err != nil {
		return nil, err
	}
	m := Metrics{}
	lines := bufio.NewScanner(strings.NewReader(string(body)))
	for lines.Scan() {
		line := lines.Text()
		// Label values may contain spaces, so the value follows the last one: weftd sends no
		// timestamps.
		i := strings.LastIndexByte(line, ' ')
		if i < 0 || line[0] == '#' {
			continue
		}
		v, err := strconv.ParseFloat(line[i+1:], 64)
		if err != nil {
			return nil, fmt.Errorf("line %q: %w", line, err)
		}
		m[line[:i]] = v
	}
	return m, lines.Err()
}

// Sum returns the sum of a metric over all labels.
func (m Metrics) Sum(name string) float64 {
	var sum float64
	for key, v := range m {
		if key == name || strings.HasPrefix(key, name+"{") {
			sum += v
		}
	}
	return sum
}

// ByLabel returns the samples of a metric by the value of its only label.
func (m Metrics) ByLabel(name, label string) map[string]float64 {
	values := map[string]float64{}
	for sample, v := range m {
		value, ok := strings.CutPrefix(sample, name+"{"+label+`="`)
		if ok {
			values[strings.TrimSuffix(value, `"}`)] = v
		}
	}
	return values
}

// Features returns the kernel features that weftd uses and does not use.
func (m Metrics) Features() (used, unused []string) {
	for name, v := range m.ByLabel("weft_engine_feature", "feature") {
		if v == 1 {
			used = append(used, name)
		} else {
			unused = append(unused, name)
		}
	}
	slices.Sort(used)
	slices.Sort(unused)
	return used, unused
}

// Get reads a path of a daemon's health server. A status other than 200 is an error that contains
// the body.
func Get(ctx context.Context, at netip.AddrPort, path string) ([]byte, error) {
	return get(ctx, http.DefaultClient, at, path)
}

func get(
	ctx context.Context, client *http.Client, at netip.AddrPort, path string,
) ([]byte, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+at.String()+path, nil)
	if err != nil {
		return nil, err
	}
	response, err := client.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, bodyLimit))
	if err != nil {
		return nil, err
	}
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: %s", response.Status, strings.TrimSpace(string(body)))
	}
	return body, nil
}

// GetInside is Get for a client in the namespace, for the pages that a daemon shows only
// to local clients.
func GetInside(ctx context.Context, ns *lab.NS, at netip.AddrPort, path string) ([]byte, error) {
	dial := func(context.Context, string, string) (net.Conn, error) { return ns.Dial("tcp", at) }
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: dial}}
	return get(ctx, client, at, path)
}

// bodyLimit is the number of bytes read of a body: metrics of 1,000 nodes take 400 KB.
const bodyLimit = 16 << 20
