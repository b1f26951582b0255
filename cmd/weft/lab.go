//go:build !nolab

package main

// labCommands lists the subcommands that need the lab.
func labCommands() []command {
	return []command{
		{"demo", "run three nodes with pods on this machine", demo},
		{"bench", "compare the speed of weftd with other targets; bench report and bench compare show results", runBench},
	}
}
