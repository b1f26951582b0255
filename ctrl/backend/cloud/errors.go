package cloud

import (
	"cmp"
	"errors"
	"fmt"
	"strings"
	"time"
)

// Kind classifies an error of a cloud.
type Kind string

// The kinds of errors; they are values of a metric's label.
const (
	Throttled   Kind = "throttled"
	Denied      Kind = "denied"      // a permission is missing
	Credentials Kind = "credentials" // absent, expired or wrong
	Quota       Kind = "quota"
	Pending     Kind = "pending" // in progress, or not visible yet
	Unavailable Kind = "unavailable"
	Other       Kind = "other"
)

// Error is an error of a call.
type Error struct {
	Call          string
	Kind          Kind
	Code, Message string // of the cloud
	Hint          string // what helps
	RetryAfter    time.Duration
	err           error // without an answer
}

// maxMessage limits the text of a cloud's message, in bytes: AWS adds a kilobyte of code to a
// refusal.
const maxMessage = 300

// Error returns the call, the cloud's code and message, and a hint.
func (e *Error) Error() string {
	text := e.Message
	if e.err != nil {
		text = e.err.Error()
	}
	text, _, _ = strings.Cut(text, " Encoded authorization failure message:")
	text = strings.Join(strings.Fields(strings.ToValidUTF8(text, "?")), " ")
	if len(text) > maxMessage {
		text = strings.ToValidUTF8(text[:maxMessage], "") + "..."
	}
	var parts []string
	for _, part := range []string{e.Call, e.Code, strings.TrimSuffix(text, "."), e.Hint} {
		if part != "" {
			parts = append(parts, part)
		}
	}
	return strings.Join(parts, ": ")
}

// Unwrap returns the cause of a call without an answer.
func (e *Error) Unwrap() error { return e.err }

// kindOf returns the kind of an error.
func kindOf(err error) Kind {
	var e *Error
	if errors.As(err, &e) {
		return cmp.Or(e.Kind, Other)
	}
	return Other
}

// missing returns the hint for a missing permission.
func missing(permission string) string {
	return fmt.Sprintf("the permission %s is missing", permission)
}

// pending is the error of a change that the cloud has accepted, but does not show yet.
func pending(format string, args ...any) error {
	return &Error{Kind: Pending, Message: fmt.Sprintf(format, args...)}
}

// notListed is the error for an answer without the route table that a call asked for.
func notListed(call string) error {
	return &Error{Call: call, Message: "the answer does not have the table"}
}

// unless returns an error of a cloud, or nil if its code has the prefix.
func unless(prefix string, err error) error {
	var e *Error
	if errors.As(err, &e) && strings.HasPrefix(e.Code, prefix) {
		return nil
	}
	return err
}

// firstCode returns the kind of the first prefix that a code has; Other if it has none.
func firstCode(code string, table []codeKind) Kind {
	for _, c := range table {
		if strings.HasPrefix(code, c.prefix) {
			return c.kind
		}
	}
	return Other
}

// codeKind gives the codes with a prefix a kind.
type codeKind struct {
	prefix string
	kind   Kind
}
