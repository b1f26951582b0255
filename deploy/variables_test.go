package deploy_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestVariablesDocumented checks that docs/testing.md lists all environment variables of the tests.
func TestVariablesDocumented(t *testing.T) {
	doc, err := os.ReadFile("../docs/testing.md")
	if err != nil {
		t.Fatal(err)
	}
	variable := regexp.MustCompile(`\bWEFT_[A-Z_]+\b`)
	err = filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (d.Name() == ".git" || d.Name() == "bin" ||
			path == filepath.Join("..", "cmd", "weftd", "config")): // tests misspelt WEFTD_ variables
			return filepath.SkipDir
		case !d.Type().IsRegular() || strings.HasSuffix(path, ".md"):
			return nil
		}
		source, err := os.ReadFile(path)
		for _, name := range variable.FindAllString(string(source), -1) {
			if !strings.Contains(string(doc), name) {
				t.Errorf("%s: variable %s is not in docs/testing.md", path, name)
			}
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}
