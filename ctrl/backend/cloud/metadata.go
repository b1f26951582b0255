package cloud

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// metadataService reads the metadata service of a cloud, which has plain texts under one URL.
type metadataService struct {
	items    string // URL: "http://100.100.100.200/latest/meta-data/"
	instance string // of the cloud: "an EC2 instance"
	hint     string // further questions if there is no answer
	http     *http.Client
	calls    *calls

	header, value string // of each request and answer; may be empty
	// tokens is the URL of tokens for the header tokenHeader, as AWS and, in its hardened mode,
	// Alibaba demand; empty if the service knows none.
	tokens, tokenHeader string
	token               string
	tokenEnd            time.Time
}

// errNotThere is the error for an item that the service does not have.
var errNotThere = errors.New("not there")

// tokenLifetime is the lifetime of a token of the metadata service.
const tokenLifetime = time.Minute

// get returns an item.
func (m *metadataService) get(ctx context.Context, item string) (text string, err error) {
	defer func() { m.calls.add("metadata", err) }()
	if err = m.renewToken(ctx); err == nil {
		header, value := m.header, m.value
		if m.token != "" {
			header, value = m.tokenHeader, m.token
		}
		text, err = m.request(ctx, http.MethodGet, m.items+item, header, value)
	}
	if err == nil {
		return text, nil
	}
	e := &Error{Call: "metadata", Kind: Unavailable, err: fmt.Errorf("%s: %w", item, err),
		Hint: "is this " + m.instance}
	if !errors.Is(err, errNotThere) {
		m.token = ""
		e.Hint += ", may it reach " + m.items + m.hint
	}
	e.Hint += "?"
	return "", e
}

// renewToken gets a token if the service has them and the last one is about to end.
func (m *metadataService) renewToken(ctx context.Context) error {
	if m.tokens == "" || m.token != "" && time.Until(m.tokenEnd) > tokenLifetime/2 {
		return nil
	}
	token, err := m.request(ctx, http.MethodPut, m.tokens, m.tokenHeader+"-ttl-seconds",
		strconv.Itoa(int(tokenLifetime.Seconds())))
	if errors.Is(err, errNotThere) { // needs none
		return nil
	}
	m.token, m.tokenEnd = token, time.Now().Add(tokenLifetime)
	return err
}

func (m *metadataService) request(ctx context.Context, method, url, header, value string) (string, error) {
	r, err := http.NewRequestWithContext(ctx, method, url, nil)
	if err != nil {
		return "", err
	}
	if header != "" {
		r.Header.Set(header, value)
	}
	response, err := m.http.Do(r)
	if err != nil {
		return "", withoutURL(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(io.LimitReader(response.Body, maxMetadata))
	switch {
	case err != nil:
		return "", withoutURL(err)
	case m.header != "" && response.Header.Get(m.header) != m.value:
		return "", fmt.Errorf("an answer with status %s is not that of the cloud", response.Status)
	case response.StatusCode == http.StatusNotFound:
		return "", errNotThere
	case response.StatusCode/100 != 2:
		return "", fmt.Errorf("status %s", response.Status)
	case strings.HasPrefix(strings.TrimSpace(string(text)), "<"):
		return "", errors.New("answer is HTML: is there a proxy?")
	}
	return strings.TrimSpace(string(text)), nil
}

// maxMetadata limits an item, in bytes.
const maxMetadata = 64 << 10

// all reads items into texts. None may be empty.
func (m *metadataService) all(ctx context.Context, items map[string]*string) error {
	for _, item := range slices.Sorted(maps.Keys(items)) {
		text, err := m.get(ctx, item)
		if err != nil {
			return err
		}
		if text == "" {
			return &Error{Call: "metadata", Kind: Unavailable, Message: item + " is empty"}
		}
		*items[item] = text
	}
	return nil
}

// role reads the credentials of the role of this instance, from the list of roles at a path. hint
// tells what helps if there is none.
func (m *metadataService) role(ctx context.Context, path, hint string, names keyNames) (keyPair, error) {
	roles, err := m.get(ctx, path)
	role, _, _ := strings.Cut(roles, "\n")
	if errors.Is(err, errNotThere) || err == nil && role == "" {
		return keyPair{}, &Error{Call: "metadata", Kind: Credentials, Message: "this instance has no role",
			Hint: hint}
	}
	if err != nil {
		return keyPair{}, err
	}
	text, err := m.get(ctx, path+strings.TrimSpace(role))
	if err != nil {
		return keyPair{}, err
	}
	return decodeKeys(text, names)
}

// interfaceOf returns the name of the interface, its MAC address in a metadata service, that has
// one of the node's addresses. get reads the addresses of an interface. A single interface is it
// without a look.
func interfaceOf(macs []string, addrs []netip.Addr, get func(mac string) (string, error)) (string, error) {
	if len(macs) == 1 {
		return macs[0], nil
	}
	for _, mac := range macs {
		text, err := get(mac)
		if err != nil && !errors.Is(err, errNotThere) {
			return "", err
		}
		for field := range strings.FieldsSeq(strings.NewReplacer("[", " ", "]", " ", ",", " ", `"`, " ").Replace(text)) {
			if a, err := netip.ParseAddr(field); err == nil && slices.Contains(addrs, a) {
				return mac, nil
			}
		}
	}
	return "", &Error{Call: "metadata", Message: fmt.Sprintf(
		"none of the instance's %d interfaces has the address %v of this node", len(macs), addrs)}
}

// checkName returns an error for a text that is no part of the name of a host.
func checkName(property, text string) error {
	if strings.Trim(text, "abcdefghijklmnopqrstuvwxyz0123456789-.") == "" && text != "" {
		return nil
	}
	return &Error{Call: "metadata", Message: fmt.Sprintf("%s %q is not a name", property, text)}
}

// lines returns the entries of a list in a metadata service.
func lines(text string) []string {
	var list []string
	for l := range strings.FieldsSeq(text) {
		list = append(list, strings.TrimSuffix(l, "/"))
	}
	return list
}
