// Package bundle writes the archive for a bug report: the state of a node as files, without
// secrets.
//
// Each part of the archive stands alone. A part that cannot be read is named in errors.txt with the
// reason, and the rest is written.
package bundle

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
)

// Part is a file of the archive.
type Part struct {
	Name string // path in the archive
	// Read returns the content. The archive gets it without secrets.
	Read func(context.Context) ([]byte, error)
}

// partTime limits the time to read one part.
const partTime = 20 * time.Second

// Write writes a gzipped tar archive with the parts in a directory, and returns the errors of parts
// that could not be read, which the archive lists, too. err is an error of writing.
func Write(ctx context.Context, w io.Writer, directory string, parts []Part) (unread []error, err error) {
	zipped := gzip.NewWriter(w)
	archive := tar.NewWriter(zipped)
	now := time.Now()
	add := func(name string, content []byte) error {
		head := tar.Header{Name: directory + "/" + name, Mode: 0o600, Size: int64(len(content)), ModTime: now}
		if err := archive.WriteHeader(&head); err != nil {
			return err
		}
		_, err := archive.Write(content)
		return err
	}
	var list strings.Builder
	for _, p := range parts {
		content, readErr := read(ctx, p)
		if readErr != nil {
			unread = append(unread, fmt.Errorf("%s: %w", p.Name, readErr))
			fmt.Fprintf(&list, "%s: %s\n", p.Name, Redact([]byte(readErr.Error())))
		}
		if len(content) == 0 {
			continue
		}
		if err := add(p.Name, Redact(content)); err != nil {
			return unread, err
		}
	}
	if len(unread) > 0 {
		if err := add("errors.txt", []byte(list.String())); err != nil {
			return unread, err
		}
	}
	return unread, errors.Join(archive.Close(), zipped.Close())
}

func read(ctx context.Context, p Part) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, partTime)
	defer cancel()
	return p.Read(ctx)
}
