package main

import (
	"debug/buildinfo"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/mod/semver"
)

// installPlugins copies the CNI plugins that are missing in a directory of the node, or of an older
// version there. Others stay: they may be newer, or of another project, as are those of
// Kubernetes' packages, whose builds have no version.
func (i *installer) installPlugins() error {
	entries, err := os.ReadDir(i.pluginSource)
	if err != nil {
		return err
	}
	for _, e := range entries {
		source, target := filepath.Join(i.pluginSource, e.Name()), filepath.Join(i.plugins, e.Name())
		wanted, err := wantsPlugin(source, target)
		if err != nil {
			return err
		}
		if !wanted {
			fmt.Fprintln(i.log, "install-conf: kept", target)
			continue
		}
		b, err := os.ReadFile(source)
		if err != nil {
			return err
		}
		if err := replace(target, b, 0o755); err != nil {
			return err
		}
		fmt.Fprintln(i.log, "install-conf: wrote", target)
	}
	return nil
}

// wantsPlugin reports whether the target is missing, or empty after a crash, or an older version of
// the source's module.
func wantsPlugin(source, target string) (bool, error) {
	info, err := os.Stat(target)
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	if info.Size() == 0 {
		return true, nil
	}
	ours, err := buildinfo.ReadFile(source)
	if err != nil {
		return false, err
	}
	theirs, err := buildinfo.ReadFile(target)
	if err != nil {
		return false, nil // not a Go program: another project's
	}
	return theirs.Main.Path == ours.Main.Path && semver.IsValid(theirs.Main.Version) &&
		semver.Compare(theirs.Main.Version, ours.Main.Version) < 0, nil
}
