package report

import (
	"bytes"
	"errors"
	"strings"
	"testing"
)

func TestSpread(t *testing.T) {
	for _, c := range []struct {
		values []float64
		want   Spread
	}{
		{nil, Spread{}},
		{[]float64{3}, Spread{3, 3, 3, 1}},
		{[]float64{5, 1, 3}, Spread{3, 1, 5, 3}},
		{[]float64{4, 1, 2, 9}, Spread{3, 1, 9, 4}},
	} {
		if got := spreadOf(c.values); got != c.want {
			t.Errorf("%v: %+v, want %+v", c.values, got, c.want)
		}
	}
}

// In the second round, the machine was half as fast for both targets.
func TestRatioWithinRound(t *testing.T) {
	r := newResult(map[string][]float64{"vxlan": {4, 2, 4}, "weftd": {8, 4, 6}}, nil)
	got := r.Find(wire, "tcp-1", "weftd").ratio(r.Find(wire, "tcp-1", "vxlan"), "throughput")
	if want := (Spread{2, 1.5, 2, 3}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
}

func TestNumber(t *testing.T) {
	for v, want := range map[float64]string{
		0: "0.00", 0.0123: "0.012", 0.5: "0.50", 3.14159: "3.14", 31.4159: "31.4", 314.159: "314",
	} {
		if got := number(v); got != want {
			t.Errorf("number(%v) = %s, want %s", v, got, want)
		}
	}
}

func TestHeadlinesAreMetrics(t *testing.T) {
	for _, c := range Cases() {
		for _, name := range c.Headlines {
			if MetricByName(name).Unit == "" {
				t.Errorf("%s: headline %s is not a metric with a unit", c.Name, name)
			}
		}
	}
}

func TestIncomplete(t *testing.T) {
	r := newResult(map[string][]float64{"vxlan": {5}}, nil)
	r.Incomplete = "interrupted"
	var file bytes.Buffer
	if err := r.Write(&file); err != nil {
		t.Fatal(err)
	}
	r, err := Read(&file)
	if err != nil {
		t.Fatal(err)
	}
	var tables, page, html, changes strings.Builder
	err = errors.Join(r.Tables(&tables), r.Markdown(&page), r.HTML(&html),
		Compare(&changes, newResult(map[string][]float64{"vxlan": {5}}, nil), r))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ text, want string }{
		{tables.String(), "The run ended early: interrupted\n"},
		{page.String(), "The run ended early: interrupted\n"},
		{html.String(), "The run ended early: interrupted<"},
		{changes.String(), "the second run ended early: interrupted\n"},
	} {
		if !strings.Contains(c.text, c.want) {
			t.Errorf("want %q in:\n%s", c.want, c.text)
		}
	}
}

func TestReadWritten(t *testing.T) {
	r := newResult(map[string][]float64{"vxlan": {5, 6, 7}}, nil)
	var b bytes.Buffer
	if err := r.Write(&b); err != nil {
		t.Fatal(err)
	}
	got, err := Read(&b)
	if err != nil {
		t.Fatal(err)
	}
	spread := got.Find(wire, "tcp-1", "vxlan").Spread("throughput")
	if spread != (Spread{6e9, 5e9, 7e9, 3}) || got.Host.CPU != r.Host.CPU {
		t.Errorf("read %+v, %+v", spread, got.Host)
	}
}

func TestReadErrors(t *testing.T) {
	const (
		targets  = `{"schema":1,"targets":[{"name":"none"}],"series":[`
		underlay = `{"underlay":{"mode":"wire","mtu":1500},`
		samples  = `"samples":[{"throughput":1}]`
		series   = underlay + `"case":"tcp-1","target":"none",` + samples + "}"
	)
	for _, c := range []struct{ text, want string }{
		{targets + series + "]}\n", ""},
		{"", "the file is empty"},
		{"{}", "schema 0, want 1"},
		{`{"schema":1}`, "nothing was measured"},
		{`{"schema":99,"series":[{}]}`, "schema 99, want 1"},
		{targets + `{}]}`, `unknown workload ""`},
		{targets + series + "]} x", "trailing data after the result"},
		{targets + series + "]}{}", "trailing data after the result"},
		{targets + underlay + `"case":"tcp","target":"none",` + samples + "}]}", `unknown workload "tcp"`},
		{targets + underlay + `"case":"tcp-1","target":"vxlan",` + samples + "}]}",
			`target "vxlan" is not among the result's`},
		{targets + underlay + `"case":"tcp-1","target":"",` + samples + "}]}", `target "" is not among the result's`},
		{targets + `{"underlay":{"mode":"wire"},"case":"tcp-1","target":"none",` + samples + "}]}", "MTU 0"},
		{targets + `{"underlay":{"mtu":1500},"case":"tcp-1","target":"none",` + samples + "}]}", `mode ""`},
		{targets + underlay + `"case":"tcp-1","target":"none","samples":[]}]}`, "no samples"},
		{targets + series + "," + series + "]}", "second series of wire 1500, tcp-1, none"},
		{`{"schema":1,"targets":[{"name":"none"},{"name":"none"}],"series":[` + series + "]}",
			`two targets are named "none"`},
		{`{"schema":1,"targets":[{"name":""}],"series":[` + series + "]}", "no name"},
	} {
		_, err := Read(strings.NewReader(c.text))
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v, want %q", c.text, err, c.want)
		}
	}
}
