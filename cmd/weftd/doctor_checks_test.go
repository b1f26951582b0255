package main

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"weft/ctrl/doctor"
)

// notInLab has the reason why no test produces the fault of a check in a lab. TestChecks of package
// doctor makes each of them as a value.
var notInLab = map[string]string{
	"conntrack-full": "the limit of the table is that of the machine: nf_conntrack_max cannot be written " +
		"in a network namespace",
	"neighbour-table-full": "gc_thresh3 and the entries that it limits are those of the machine: a full " +
		"table would cut off its other namespaces",
	"charon-down":    "the tests of the ipsec backend end charon and read its status",
	"ipsec-missing":  "the tests of the ipsec backend give nodes different keys and read the status",
	"lease-expiring": "a lease in etcd lasts a day, and no namespace has a clock of its own",
}

// TestEveryCheckIsProduced holds that each check of the doctor finds a fault in a lab: its name is
// in the namespace tests, which await it and nothing beside it.
func TestEveryCheckIsProduced(t *testing.T) {
	files, err := filepath.Glob("netns_*_test.go")
	if err != nil {
		t.Fatal(err)
	}
	produced := map[string][]string{} // by check: the functions
	for _, file := range files {
		parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		for _, decl := range parsed.Decls {
			function, ok := decl.(*ast.FuncDecl)
			if !ok {
				continue
			}
			for _, name := range literals(function) {
				if !slices.Contains(produced[name], function.Name.Name) {
					produced[name] = append(produced[name], function.Name.Name)
				}
			}
		}
	}
	for _, name := range doctor.Names() {
		reason, excepted := notInLab[name]
		switch where := produced[name]; {
		case excepted && len(where) > 0:
			t.Errorf("%s: produced by %v, but excepted: %s", name, where, reason)
		case !excepted && len(where) == 0:
			t.Errorf("%s: no test produces it", name)
		default:
			t.Logf("%-26s %s%s", name, strings.Join(where, ", "), reason)
		}
	}
	for name := range notInLab {
		if !slices.Contains(doctor.Names(), name) {
			t.Errorf("there is no check %s", name)
		}
	}
}

// literals returns the strings in a function.
func literals(in ast.Node) (all []string) {
	ast.Inspect(in, func(n ast.Node) bool {
		if l, ok := n.(*ast.BasicLit); ok && l.Kind == token.STRING {
			if text, err := strconv.Unquote(l.Value); err == nil {
				all = append(all, text)
			}
		}
		return true
	})
	return all
}
