package lab

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
)

const (
	// requireNetnsEnv, set to 1, turns a skipped namespace test into a failure.
	requireNetnsEnv = "WEFT_REQUIRE_NETNS"
	// stageForbidden is the stage of a program that lists its tests without namespaces.
	stageForbidden = "forbidden"
	netnsPattern   = "^TestNetns"
	// systemPath has iptables, nft and dockerd, which Debian keeps out of an ordinary user's PATH.
	systemPath = "/usr/local/sbin:/usr/sbin:/sbin"
)

// runner is the part of *testing.M that Main uses. Commands import this package, so it must not
// import testing.
type runner interface{ Run() int }

// Main runs a package's tests in namespaces of their own. Flags, exit status, output and profiles
// are those of an ordinary run. Use it as
//
//	func TestMain(m *testing.M) { os.Exit(lab.Main(m)) }
//
// Where the host forbids namespaces, Main runs all tests except TestNetns... and prints a line "NOT
// TESTED: name: reason" for each test left out. With WEFT_REQUIRE_NETNS=1 in the environment that
// is a failure.
func Main(m runner) int {
	// A fuzz worker talks to its parent over inherited descriptors, which a second start would
	// lose.
	if slices.Contains(os.Args, "-test.fuzzworker") || os.Getenv(stageVariable) == stageForbidden {
		return m.Run()
	}
	if err := os.Setenv("PATH", os.Getenv("PATH")+":"+systemPath); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	status, err := Run(m.Run)
	var forbidden *NamespaceError
	if errors.As(err, &forbidden) {
		return runWithoutNamespaces(m, forbidden)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return status
}

// runWithoutNamespaces runs the tests that need no namespaces and reports the others.
func runWithoutNamespaces(m runner, reason error) int {
	skipped, err := listTests()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	flag.Parse()
	pattern := netnsPattern
	if skip := flag.Lookup("test.skip").Value.String(); skip != "" {
		pattern = skip + "|" + pattern
	}
	if err := flag.Set("test.skip", pattern); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	status := m.Run()
	for _, name := range skipped {
		fmt.Printf("NOT TESTED: %s: %v\n", name, reason)
	}
	if len(skipped) > 0 && os.Getenv(requireNetnsEnv) == "1" {
		fmt.Printf("FAIL: %d namespace tests could not run, but %s=1\n", len(skipped),
			requireNetnsEnv)
		return 1
	}
	return status
}

// listTests lists the namespace tests by running the test binary, since *testing.M cannot.
func listTests() ([]string, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find own executable: %w", err)
	}
	cmd := exec.Command(self, "-test.list="+netnsPattern)
	cmd.Env = append(os.Environ(), stageVariable+"="+stageForbidden)
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("list namespace tests: %w", err)
	}
	var names []string
	for line := range strings.Lines(string(out)) {
		if name := strings.TrimSpace(line); strings.HasPrefix(name, "Test") {
			names = append(names, name)
		}
	}
	return names, nil
}

// skipper is the part of *testing.T that [SkipWithoutTUN] uses.
type skipper interface {
	Skip(...any)
	Fatal(...any)
}

// SkipWithoutTUN skips a test, with the reason, if this user cannot open TUN devices. With
// WEFT_REQUIRE_NETNS=1 it fails the test instead.
func SkipWithoutTUN(t skipper) {
	err := CheckTUN()
	switch {
	case err == nil:
	case os.Getenv(requireNetnsEnv) == "1":
		t.Fatal(err)
	default:
		t.Skip("NOT TESTED:", err)
	}
}
