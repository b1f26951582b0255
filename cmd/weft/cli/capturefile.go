package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"weft/dataplane/capture"
)

// fileSink writes pcapng files. With a limit, it begins a new file when one is full; with a number
// of files, it removes the oldest.
type fileSink struct {
	path  string
	limit int64 // bytes per file; 0 means none
	keep  int   // files; 0 means all
	about capture.File

	*capture.Writer
	file    *os.File
	written int64
	names   []string // of the files, the oldest first
	number  int
}

func newFileSink(path string, limit int64, keep int, about capture.File) (*fileSink, error) {
	s := &fileSink{path: path, limit: limit, keep: keep, about: about}
	return s, s.next()
}

// next ends the file, if there is one, and begins the next.
func (s *fileSink) next() error {
	if s.file != nil {
		if err := s.Close(); err != nil {
			return err
		}
	}
	name := s.path
	if s.limit > 0 {
		ext := filepath.Ext(name)
		name = fmt.Sprintf("%s-%05d%s", strings.TrimSuffix(name, ext), s.number, ext)
		s.number++
	}
	file, err := os.OpenFile(name, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	s.file, s.written = file, 0
	if s.names = append(s.names, name); s.keep > 0 && len(s.names) > s.keep {
		if err := os.Remove(s.names[0]); err != nil {
			return err
		}
		s.names = s.names[1:]
	}
	s.Writer, err = capture.NewWriter(countingWriter{file, &s.written}, s.about)
	return err
}

// Write writes a record, to the next file if this one is full.
func (s *fileSink) Write(r *capture.Record) error {
	if s.limit > 0 && s.written >= s.limit {
		if err := s.next(); err != nil {
			return err
		}
	}
	return s.Writer.Write(r)
}

// Close ends the file.
func (s *fileSink) Close() error { return errors.Join(s.Writer.Close(), s.file.Close()) }

// countingWriter counts the bytes written.
type countingWriter struct {
	io.Writer
	n *int64
}

// Write writes and counts.
func (w countingWriter) Write(b []byte) (int, error) {
	n, err := w.Writer.Write(b)
	*w.n += int64(n)
	return n, err
}

// writeJSONLine prints a record as one line of JSON.
func writeJSONLine(w io.Writer, r *capture.Record) error {
	direction := "in"
	if r.Outbound {
		direction = "out"
	}
	line := struct {
		Time      time.Time `json:"time"`
		Point     string    `json:"point"`
		Direction string    `json:"direction"`
		Node      string    `json:"node,omitempty"`
		Outer     string    `json:"outer,omitempty"`
		Worker    int       `json:"worker"` // -1: carried by the kernel
		Device    string    `json:"device,omitempty"`
		Drop      string    `json:"drop,omitempty"`
		Length    int       `json:"length"`
		Missed    uint64    `json:"missed,omitempty"`
		Packet    string    `json:"packet"`
		Bytes     []byte    `json:"bytes"`
	}{
		r.Time, r.Point.String(), direction, r.Node, "", r.Worker, r.Device, r.Drop, r.Length,
		r.Missed, r.Text(), r.Bytes,
	}
	if r.Outer.IsValid() {
		line.Outer = r.Outer.String()
	}
	return json.NewEncoder(w).Encode(line)
}
