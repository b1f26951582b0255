package bench

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
)

// Metrics are the samples of one scrape, by their name with labels as the text format has it:
// weft_packets_total{direction="in"}.
type Metrics map[string]float64

// Scrape reads a daemon's /metrics. The address must be reachable from the lab's root.
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
		// Label values may hold blanks, so the sample ends at the last one. We never send timestamps.
		i := strings.LastIndexByte(line, ' ')
		if i < 0 || line[0] == '#' {
			continue
		}
		v, err := strconv.ParseFloat(line[i+1:], 64)
		if err != nil {
			return nil, fmt.Errorf("sample %q: %w", line, err)
		}
		m[line[:i]] = v
	}
	return m, lines.Err()
}

// Sum adds up all samples of a metric, whatever their labels.
func (m Metrics) Sum(name string) float64 {
	var sum float64
	for key, v := range m {
		if key == name || strings.HasPrefix(key, name+"{") {
			sum += v
		}
	}
	return sum
}

// Get reads a page of a daemon's health server. Any status but 200 is an error that holds the text.
func Get(ctx context.Context, at netip.AddrPort, path string) ([]byte, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+at.String()+path, nil)
	if err != nil {
		return nil, err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, pageLimit))
	if err != nil {
		return nil, err
	}
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: %s", response.Status, strings.TrimSpace(string(body)))
	}
	return body, nil
}

// pageLimit bounds what is read of a page, in bytes: metrics of 1,000 nodes take 400 KB.
const pageLimit = 16 << 20
