// Package cmd_test holds the rules of the whole tree that no single package can
// check: who may import whom, which package is the only door to an outside
// library, and that every exported thing says what it is.
package cmd_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// mayImport lists every package of the module and the packages of ours that it
// may import. A package or an edge that is not in it fails the test: adding one
// is a decision about the structure, so it is made here, in the open.
var mayImport = map[string][]string{
	"encap":          {"encap/checksum"},
	"encap/checksum": {},
	"encap/offload":  {"encap", "encap/checksum"},

	"dataplane":                {"dataplane/capture", "dataplane/fastpath", "dataplane/feature", "dataplane/fib", "dataplane/poll", "dataplane/tun", "dataplane/udp", "encap", "encap/checksum", "encap/offload"},
	"dataplane/capture":        {"dataplane/capture/filter", "encap/checksum"},
	"dataplane/capture/filter": {},
	"dataplane/feature":        {},
	"dataplane/fib":            {},
	"dataplane/poll":           {},
	"dataplane/probe":          {"encap/checksum"},
	"dataplane/topflows":       {},
	"dataplane/tun":            {"dataplane/feature", "encap", "encap/checksum", "encap/offload"},
	"dataplane/udp":            {"dataplane/feature", "encap", "encap/checksum", "encap/offload"},
	"dataplane/fastpath":       {"dataplane/fib"},

	"lease":           {"lease/ordered", "lease/spelling"},
	"lease/etcd":      {"lease"},
	"lease/file":      {"lease", "lease/spelling"},
	"lease/kube":      {"lease"},
	"lease/storetest": {"lease"},
	"lease/ordered":   {},
	"lease/spelling":  {},
	"lease/subnetenv": {},

	"ctrl":           {"lease/ordered"},
	"ctrl/conflict":  {"ctrl"},
	"ctrl/backend":   {"ctrl", "ctrl/backend/cloud", "ctrl/underlay", "encap", "lease", "lease/ordered", "lease/spelling"},
	"ctrl/bundle":    {"ctrl"},
	"ctrl/doctor":    {"ctrl", "ctrl/conflict", "ctrl/netfilter", "encap/checksum", "lease/subnetenv"},
	"ctrl/conntest":  {"ctrl/doctor"},
	"ctrl/ike":       {"ctrl"},
	"ctrl/netfilter": {},
	"ctrl/underlay":  {"ctrl"},

	"ctrl/backend/cloud":           {},
	"ctrl/backend/cloud/testcloud": {},

	"metrics": {},

	"bench":               {"bench/report", "bench/traffic", "deploy/lab", "lease/etcd/testetcd", "lease/subnetenv"},
	"bench/clients":       {"bench", "lease", "lease/etcd", "lease/etcd/testetcd"},
	"bench/report":        {},
	"bench/scale":         {"deploy/lab", "lease/etcd/testetcd"},
	"bench/traffic":       {"deploy/lab"},
	"deploy/lab":          {"lease/subnetenv"},
	"lease/etcd/testetcd": {},
	"lease/kube/testkube": {},

	"deploy/install-conf": {},

	"dataplane/refusal": {},

	"cmd/buildinfo": {},
	"cmd/control":   {"metrics"},
	"cmd/weft": {"cmd/buildinfo", "cmd/weft/cli", "bench", "bench/clients", "bench/report", "bench/scale", "bench/traffic", "deploy/lab", "lease/etcd/testetcd",
		"lease/subnetenv"},
	"cmd/weft/cli": {"cmd/buildinfo", "cmd/control", "ctrl", "ctrl/bundle", "ctrl/conntest", "ctrl/doctor", "dataplane/capture", "dataplane/probe", "lease/subnetenv", "metrics"},
	"cmd/weftd": {"cmd/buildinfo", "cmd/weft/cli", "cmd/weftd/agent", "cmd/weftd/config", "ctrl", "ctrl/netfilter", "dataplane/fastpath",
		"metrics"},
	"cmd/weftd/agent": {"cmd/control", "cmd/weftd/cgroup", "cmd/weftd/config", "cmd/weftd/page", "ctrl", "ctrl/backend", "ctrl/backend/cloud", "ctrl/conflict", "ctrl/ike", "ctrl/netfilter", "ctrl/underlay",
		"dataplane", "dataplane/capture", "dataplane/capture/filter", "dataplane/fastpath", "dataplane/feature", "dataplane/fib", "dataplane/probe", "dataplane/refusal",
		"dataplane/topflows", "dataplane/tun", "lease", "lease/etcd", "lease/file", "lease/kube", "lease/ordered", "lease/subnetenv", "metrics"},
	"cmd/weftd/cgroup": {},
	"cmd/weftd/page":   {},
	"cmd/weftd/config": {"cmd/control", "dataplane", "dataplane/feature", "lease/spelling"},
}

// doors names, for each outside library, the only packages that may import it.
var doors = map[string][]string{
	"go.etcd.io/etcd/client":              {"lease/etcd"},
	"go.etcd.io/etcd/api":                 {"lease/etcd", "lease/etcd/testetcd"}, // the types of both
	"go.etcd.io/etcd/server":              {"lease/etcd/testetcd"},
	"k8s.io":                              {"lease/kube"},
	"github.com/vishvananda/netlink":      {"ctrl", "ctrl/conntest", "dataplane/fastpath", "deploy/lab"},
	"github.com/vishvananda/netns":        {"deploy/lab"},
	"github.com/strongswan/govici":        {"ctrl/ike"},
	"github.com/songgao/water":            {"dataplane/tun"},
	"golang.org/x/mod":                    {"deploy/install-conf"},
	"golang.org/x/net/ipv4":               {"dataplane/udp"},
	"github.com/cilium/ebpf":              {"dataplane/fastpath"},
	"github.com/gaissmai/bart":            {"dataplane/fib"},
	"github.com/gopacket/gopacket":        {"dataplane/capture"},
	"github.com/prometheus/client_golang": {"metrics"},
	"github.com/google/nftables":          {"ctrl/netfilter"},
	"github.com/coreos/go-iptables":       {"ctrl/netfilter"},
	"golang.zx2c4.com/wireguard":          {"ctrl"},
	"github.com/aws/aws-sdk-go-v2":        {"ctrl/backend/cloud"},
	"sigs.k8s.io/yaml":                    {"lease/file"},
	"github.com/joho/godotenv":            {"lease/subnetenv"},
	"github.com/google/renameio":          {"lease/subnetenv"},
	"github.com/coreos/go-systemd":        {"cmd/weftd/agent"},
	"charm.land/bubbletea":                {"cmd/weft/cli"},
	"github.com/spf13/cobra":              {"cmd/weft", "cmd/weft/cli"},
	"github.com/spf13/pflag":              {"cmd/weft", "cmd/weft/cli"},
}

const module = "weft/"

// file is one parsed Go source file and the package directory it lies in.
type file struct {
	dir, name string
	ast       *ast.File
}

// sources parses every Go file below the module's root that is not a test.
func sources(t *testing.T) (*token.FileSet, []file) {
	t.Helper()
	root, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	fset := token.NewFileSet()
	var files []file
	err = filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if name := d.Name(); p != root && (strings.HasPrefix(name, ".") || name == "testdata") {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(p, ".go") || strings.HasSuffix(p, "_test.go") {
			return nil
		}
		parsed, err := parser.ParseFile(fset, p, nil, parser.ParseComments)
		if err != nil {
			return err
		}
		dir, err := filepath.Rel(root, filepath.Dir(p))
		files = append(files, file{filepath.ToSlash(dir), d.Name(), parsed})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(files) == 0 {
		t.Fatal("no Go files found above this folder")
	}
	return fset, files
}

func TestImportTable(t *testing.T) {
	_, files := sources(t)
	for _, f := range files {
		allowed, listed := mayImport[f.dir]
		if !listed {
			t.Errorf("%s: package is not in the import table", f.dir)
			continue
		}
		for _, spec := range f.ast.Imports {
			imported, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				t.Fatal(err)
			}
			if ours, ok := strings.CutPrefix(imported, module); ok {
				if !slices.Contains(allowed, ours) {
					t.Errorf("%s/%s: may not import %s", f.dir, f.name, ours)
				}
				continue
			}
			checkDoor(t, f, imported)
		}
	}
}

func checkDoor(t *testing.T, f file, imported string) {
	t.Helper()
	for library, owners := range doors {
		if imported != library && !strings.HasPrefix(imported, library+"/") {
			continue
		}
		if !slices.Contains(owners, f.dir) {
			t.Errorf("%s/%s: %s has its door in %v", f.dir, f.name, library, owners)
		}
		if library == "github.com/vishvananda/netlink" && f.dir == "ctrl" && !strings.HasSuffix(f.name, "_linux.go") {
			t.Errorf("%s/%s: netlink only in files named _linux.go", f.dir, f.name)
		}
	}
}

func TestEveryExportedNameIsDocumented(t *testing.T) {
	fset, files := sources(t)
	packageDoc := map[string]int{}
	for _, f := range files {
		if f.ast.Doc != nil {
			packageDoc[f.dir]++
		} else if _, ok := packageDoc[f.dir]; !ok {
			packageDoc[f.dir] = 0
		}
		for _, decl := range f.ast.Decls {
			for _, name := range undocumented(decl) {
				t.Errorf("%s: %s has no doc comment", fset.Position(name.Pos()), name.Name)
			}
		}
	}
	for dir, n := range packageDoc {
		if n != 1 {
			t.Errorf("%s: %d package comments, want 1", dir, n)
		}
	}
}

// undocumented returns the exported names that decl declares without a comment.
// A comment on a group of constants or variables serves all of them.
func undocumented(decl ast.Decl) []*ast.Ident {
	var missing []*ast.Ident
	switch d := decl.(type) {
	case *ast.FuncDecl:
		if d.Name.IsExported() && d.Doc == nil && receiverExported(d) {
			missing = append(missing, d.Name)
		}
	case *ast.GenDecl:
		for _, spec := range d.Specs {
			switch s := spec.(type) {
			case *ast.TypeSpec:
				if s.Name.IsExported() && s.Doc == nil && d.Doc == nil {
					missing = append(missing, s.Name)
				}
			case *ast.ValueSpec:
				for _, name := range s.Names {
					if name.IsExported() && s.Doc == nil && s.Comment == nil && d.Doc == nil {
						missing = append(missing, name)
					}
				}
			}
		}
	}
	return missing
}

func receiverExported(d *ast.FuncDecl) bool {
	if d.Recv == nil || len(d.Recv.List) == 0 {
		return true
	}
	typ := d.Recv.List[0].Type
	for {
		switch t := typ.(type) {
		case *ast.StarExpr:
			typ = t.X
		case *ast.IndexExpr:
			typ = t.X
		case *ast.Ident:
			return t.IsExported()
		default:
			return true
		}
	}
}

// TestNoInit keeps start-up readable: what runs is called from main.
func TestNoInit(t *testing.T) {
	fset, files := sources(t)
	for _, f := range files {
		for _, decl := range f.ast.Decls {
			if fn, ok := decl.(*ast.FuncDecl); ok && fn.Recv == nil && fn.Name.Name == "init" {
				t.Errorf("%s: init function", fset.Position(fn.Pos()))
			}
		}
	}
}

// TestLogErrorKey keeps one key, err, for errors in logs.
func TestLogErrorKey(t *testing.T) {
	fset, files := sources(t)
	for _, f := range files {
		ast.Inspect(f.ast, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			method, ok := call.Fun.(*ast.SelectorExpr)
			if !ok || !slices.Contains([]string{"Debug", "Info", "Warn", "Error", "Log", "With"}, method.Sel.Name) {
				return true
			}
			for _, arg := range call.Args {
				if key, ok := arg.(*ast.BasicLit); ok && key.Value == `"error"` {
					t.Errorf("%s: log key \"error\", want \"err\"", fset.Position(key.Pos()))
				}
			}
			return true
		})
	}
}

// TestTopLevel holds the fixed list of what may stand at the root, beside what .gitignore names there.
func TestTopLevel(t *testing.T) {
	allowed := []string{".ci", ".git", ".github", ".gitignore", "CONTRIBUTING.md", "LICENSE", "Makefile",
		"README.md", "bench", "cmd", "ctrl",
		"dataplane", "deploy", "docs", "encap", "go.mod", "go.sum", "lease", "metrics"}
	ignored, err := os.ReadFile("../.gitignore")
	if err != nil {
		t.Fatal(err)
	}
	for pattern := range strings.FieldsSeq(string(ignored)) {
		found, err := filepath.Glob("../" + strings.Trim(pattern, "/"))
		if err != nil {
			t.Fatalf(".gitignore: %s: %v", pattern, err)
		}
		for _, p := range found {
			allowed = append(allowed, filepath.Base(p))
		}
	}
	entries, err := os.ReadDir("..")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if !slices.Contains(allowed, e.Name()) {
			t.Errorf("%s: does not belong at the top level (allowed: %v)", e.Name(), allowed)
		}
	}
}

// TestDocsListFlags compares the flags of weftd with the tables of docs/configuration.md, in both
// directions.
func TestDocsListFlags(t *testing.T) {
	declared := namesIn(t, `name: "([a-z0-9_-]+)"`, goFiles(t, "weftd/config")...)
	documented := namesIn(t, "(?m)^\\| .*", "../docs/configuration.md")
	flags := map[string]bool{}
	for row := range documented {
		first, _, _ := strings.Cut(strings.TrimPrefix(row, "|"), "|")
		for _, m := range regexp.MustCompile("`--([a-z0-9_-]+)`").FindAllStringSubmatch(first, -1) {
			flags[m[1]] = true
		}
	}
	compareNames(t, "flag --", declared, flags, "docs/configuration.md")
}

// TestDocsListDropReasons compares the labels of dataplane.Drop with docs/metrics.md.
func TestDocsListDropReasons(t *testing.T) {
	declared := namesIn(t, `(?m)^\s+Drop\w+: +"([a-z_]+)"`, "../dataplane/drop.go")
	text, err := os.ReadFile("../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, _ := strings.Cut(string(text), "## Drop reasons")
	documented := map[string]bool{}
	for _, m := range regexp.MustCompile("(?m)^\\| `([a-z_]+)` ").FindAllStringSubmatch(table, -1) {
		documented[m[1]] = true
	}
	compareNames(t, "drop reason ", declared, documented, "docs/metrics.md")
}

// goFiles lists the Go files of a directory that are not tests.
func goFiles(t *testing.T, dir string) []string {
	t.Helper()
	files, err := filepath.Glob(dir + "/*.go")
	if err != nil {
		t.Fatal(err)
	}
	return slices.DeleteFunc(files, func(f string) bool { return strings.HasSuffix(f, "_test.go") })
}

// namesIn returns the last group of every match of pattern in the files, or the whole match of a
// pattern without groups.
func namesIn(t *testing.T, pattern string, files ...string) map[string]bool {
	t.Helper()
	names := map[string]bool{}
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(pattern).FindAllStringSubmatch(string(text), -1) {
			names[m[len(m)-1]] = true
		}
	}
	if len(names) == 0 {
		t.Fatalf("no match of %s in %v: the pattern is out of date", pattern, files)
	}
	return names
}

func compareNames(t *testing.T, kind string, declared, documented map[string]bool, page string) {
	t.Helper()
	for name := range declared {
		if !documented[name] {
			t.Errorf("%s has no row for %s%s", page, kind, name)
		}
	}
	for name := range documented {
		if !declared[name] {
			t.Errorf("%s has a row for %s%s, which does not exist", page, kind, name)
		}
	}
}

// wordingLimit is the highest share of comment lines that may hold the word "what": clauses with it
// usually avoid a noun. Go's net package has 0.2 %.
const wordingLimit = 0.01

// avoided lists phrases that a reader stumbles over, each with a plain one.
var avoided = map[string]string{
	`says whether|tells whether`:        "reports whether",
	`trying on`:                         "retrying",
	`for ever`:                          "forever",
	`(is|are) made (again|anew)|anew`:   "recreated",
	`so many bytes`:                     "n bytes",
	`nobody|somebody|whoever`:           "a noun",
	`one a (CPU|second|packet|frame)`:   "one per ...",
	`is no (cluster|store|node|packet)`: "is not a ...",
	`folder`:                            "directory",
	`super-frame`:                       "GSO frame",
	`is to be had`:                      "available",
}

// TestWording keeps comments in plain English and, except for tables and code, within 100 columns (a
// tab counts 4).
func TestWording(t *testing.T) {
	comment := regexp.MustCompile(`(?:^|[^:"` + "`" + `])//(.*)$`)
	what := regexp.MustCompile(`(?i)\bwhat\b`)
	phrases := regexp.MustCompile(`(?i)\b(` + strings.Join(slices.Collect(maps.Keys(avoided)), "|") + `)\b`)
	comments, clauses := 0, 0
	eachLine(t, func(file string, n int, line string) {
		m := comment.FindStringSubmatch(line)
		if m == nil || strings.HasPrefix(m[1], "go:") {
			return
		}
		comments++
		if what.MatchString(m[1]) {
			clauses++
		}
		if found := phrases.FindString(m[1]); found != "" {
			t.Errorf("%s:%d: %q in a comment: say %q", file, n, found, plainWords(found))
		}
		text := strings.TrimSpace(line)
		width := len([]rune(strings.ReplaceAll(line, "\t", "    ")))
		if strings.HasPrefix(text, "//") && !strings.HasPrefix(text, "//\t") && width > 100 {
			t.Errorf("%s:%d: a comment of %d columns, want 100 at most", file, n, width)
		}
	})
	if share := float64(clauses) / float64(comments); share > wordingLimit {
		t.Errorf("%d of %d comment lines (%.1f %%) hold \"what\", want %.1f %% at most",
			clauses, comments, 100*share, 100*wordingLimit)
	}
}

// plainWords returns the replacement for an avoided phrase.
func plainWords(found string) string {
	for phrase, plain := range avoided {
		if regexp.MustCompile(`(?i)^(` + phrase + `)$`).MatchString(found) {
			return plain
		}
	}
	return ""
}

// eachLine calls fn for each line of every Go file of the module, tests included, but not of this
// one, which quotes the phrases.
func eachLine(t *testing.T, fn func(file string, n int, line string)) {
	t.Helper()
	err := filepath.WalkDir("..", func(p string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && p != ".." && strings.HasPrefix(d.Name(), "."):
			return filepath.SkipDir
		case !strings.HasSuffix(p, ".go") || p == filepath.Join("..", "cmd", "rules_test.go"):
			return nil
		}
		text, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		for i, line := range strings.Split(string(text), "\n") {
			fn(p, i+1, line)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
