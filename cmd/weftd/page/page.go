// Package page serves the status page of the daemon for browsers: one document that reads the
// status from the same server and shows it live. It needs nothing from other hosts.
package page

import (
	"bytes"
	_ "embed"
	"net/http"
	"time"
)

var (
	//go:embed page.html
	document []byte
	//go:embed page.css
	style []byte
	//go:embed page.js
	script []byte
	//go:embed cluster.js
	clusterScript []byte
)

// Path is the pattern of the document itself, for [http.ServeMux]. The document reads the status
// from /v1/status of the same server, and the matrix of the cluster from /v1/cluster.
const Path = "GET /{$}"

// Handlers returns the handlers of the page by their patterns for [http.ServeMux].
func Handlers() map[string]http.Handler {
	return map[string]http.Handler{
		Path:            file("page.html", document),
		"GET /page.css": file("page.css", style),
		"GET /page.js":  file("page.js", script),

		"GET /cluster.js": file("cluster.js", clusterScript),
	}
}

// policy lets the document load its own files and the two answers, and nothing else.
const policy = "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; " +
	"frame-ancestors 'none'; base-uri 'none'; form-action 'none'"

func file(name string, content []byte) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", policy)
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cache-Control", "no-cache") // the next version has the same names
		http.ServeContent(w, r, name, time.Time{}, bytes.NewReader(content))
	})
}
