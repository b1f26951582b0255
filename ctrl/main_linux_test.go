package ctrl

import (
	"fmt"
	"os"
	"testing"

	"go.uber.org/goleak"

	"weft/deploy/lab"
)

func TestMain(m *testing.M) { os.Exit(lab.Main(leakCheck{m})) }

// leakCheck fails a run that passed but leaked goroutines.
type leakCheck struct{ m *testing.M }

func (l leakCheck) Run() int {
	status := l.m.Run()
	if status == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	return status
}
