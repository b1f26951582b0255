//go:build nolab

package main

// labCommands lists no subcommand: this build has no lab.
func labCommands() []command { return nil }
