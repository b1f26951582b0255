package netfilter

import (
	"os"
	"testing"

	"weft/bench/lab"
)

func TestMain(m *testing.M) { os.Exit(lab.Main(m)) }
