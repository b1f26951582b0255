package fastpath

import (
	"os"
	"testing"

	"weft/deploy/lab"
)

func TestMain(m *testing.M) { os.Exit(lab.Main(m)) }
