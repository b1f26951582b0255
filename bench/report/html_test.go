package report

import (
	"bytes"
	"encoding/xml"
	"io"
	"strings"
	"testing"
)

func TestHTML(t *testing.T) {
	r := newResult(map[string][]float64{"none": {10, 10, 11}, "vxlan": {5, 5, 5}, "weftd": {6, 5.5, 6.5}},
		map[string][]float64{"vxlan": {40, 40, 40}})
	r.Features = []Features{{wire, "weftd", []string{"udp-gso"}, []string{"tun-uso"}}}
	r.Skipped = []Skip{{wire, "", "ipip", "no\ndriver"}}
	var b bytes.Buffer
	if err := r.HTML(&b); err != nil {
		t.Fatal(err)
	}
	text := b.String()
	for _, want := range []string{
		"a &lt;CPU&gt;", "width:54.55%", "left:50.00%;width:9.09%", "× 1.20", "prefers-color-scheme: dark",
		`class="bar weft"`, `class="bar reference"`, "retransmits", "udp-gso", "not: tun-uso", "description of weftd",
		"rx-gro", "<p>round trip, idle: the engine of weftd busy-polls", "<li>wire 1500 ipip: no; driver</li>", ".bars span, p, dt, dd, li, td, th { overflow-wrap: anywhere; }",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("the page lacks %q", want)
		}
	}
	// The page loads nothing, and the template rejected no value.
	for _, bad := range []string{"http:", "https:", "src=", "@import", "ZgotmplZ", "<script"} {
		if strings.Contains(text, bad) {
			t.Errorf("the page contains %q", bad)
		}
	}
	// Every element is closed.
	d := xml.NewDecoder(strings.NewReader(text))
	d.Entity = xml.HTMLEntity
	for {
		if _, err := d.Token(); err == io.EOF {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
}
