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
	// requireVariable, set to 1, makes it a failure when the namespace tests cannot run.
	requireVariable = "WEFT_REQUIRE_NETNS"
	stageRefused    = "refused"
	netnsTests      = "^TestNetns"
)

// runner is what a *testing.M is for us; so this package, which also commands use, does not import testing.
type runner interface{ Run() int }

// Main runs a package's tests inside namespaces of their own: flags, exit status, output and profiles are those of an
// ordinary run. Use it as
//
//	func TestMain(m *testing.M) { os.Exit(lab.Main(m)) }
//
// Where the host forbids it, all tests but TestNetns... run, and it prints which were left out and why; with
// WEFT_REQUIRE_NETNS=1 in the environment that is a failure.
func Main(m runner) int {
	// A fuzz worker talks to its parent through inherited descriptors, which a second start would lose.
	if slices.Contains(os.Args, "-test.fuzzworker") || os.Getenv(stageVariable) == stageRefused {
		return m.Run()
	}
	status, err := Run(m.Run)
	var no *NamespaceError
	if errors.As(err, &no) {
		return runOthers(m, no)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return status
}

// runOthers runs the tests that need no namespaces.
func runOthers(m runner, why error) int {
	skipped, err := listTests()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	flag.Parse()
	pattern := netnsTests
	if given := flag.Lookup("test.skip").Value.String(); given != "" {
		pattern = given + "|" + pattern
	}
	if err := flag.Set("test.skip", pattern); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	status := m.Run()
	for _, name := range skipped {
		fmt.Printf("NOT TESTED: %s: %v\n", name, why)
	}
	if len(skipped) > 0 && os.Getenv(requireVariable) == "1" {
		fmt.Printf("FAIL: %d namespace tests could not run and %s=1\n", len(skipped), requireVariable)
		return 1
	}
	return status
}

// listTests asks the test binary itself, since *testing.M does not tell.
func listTests() ([]string, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find own program: %w", err)
	}
	cmd := exec.Command(self, "-test.list="+netnsTests)
	cmd.Env = append(os.Environ(), stageVariable+"="+stageRefused)
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

// skipper is what [SkipWithoutTUN] needs of a *testing.T.
type skipper interface {
	Skip(...any)
	Fatal(...any)
}

// SkipWithoutTUN skips a test, saying why, where this user may not make TUN devices; with WEFT_REQUIRE_NETNS=1 it fails
// the test instead.
func SkipWithoutTUN(t skipper) {
	err := CheckTUN()
	switch {
	case err == nil:
	case os.Getenv(requireVariable) == "1":
		t.Fatal(err)
	default:
		t.Skip("NOT TESTED:", err)
	}
}
