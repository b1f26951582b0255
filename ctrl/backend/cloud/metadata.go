package cloud

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/netip"
	"slices"
	"strings"
)

// metadataService reads a metadata service of plain texts under one URL, as Alibaba and Tencent
// have it.
type metadataService struct {
	base  string // "http://100.100.100.200/latest"
	http  *http.Client
	calls *calls
	// tokenHeader names the header of the token that Alibaba demands in its hardened mode; empty if
	// there is none.
	tokenHeader string
}

// errNotThere is the error for an item that the service does not have.
var errNotThere = errors.New("not there")

// metadataLifetime is the lifetime of a token of the metadata service, in seconds.
const metadataLifetime = "60"

// get returns an item.
func (m *metadataService) get(ctx context.Context, item string) (text string, err error) {
	defer func() { m.calls.add("metadata", err) }()
	token := ""
	if m.tokenHeader != "" {
		// A service without tokens answers with an error, and needs none.
		token, _ = m.request(ctx, http.MethodPut, "/api/token", m.tokenHeader+"-ttl-seconds",
			metadataLifetime)
	}
	text, err = m.request(ctx, http.MethodGet, "/meta-data/"+item, m.tokenHeader, token)
	if err != nil {
		return "", &Error{Call: "metadata", Kind: Unavailable,
			err: fmt.Errorf("%s: %w", item, err), Hint: metadataHint(err)}
	}
	return text, nil
}

func metadataHint(err error) string {
	if errors.Is(err, errNotThere) {
		return ""
	}
	return "is this an instance of the cloud, and may it reach the metadata service?"
}

func (m *metadataService) request(ctx context.Context, method, path, header, value string) (string, error) {
	r, err := http.NewRequestWithContext(ctx, method, m.base+path, nil)
	if err != nil {
		return "", err
	}
	if header != "" && value != "" {
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

// all reads items into texts.
func (m *metadataService) all(ctx context.Context, items map[string]*string) error {
	for _, item := range slices.Sorted(maps.Keys(items)) {
		text, err := m.get(ctx, item)
		if err != nil {
			return err
		}
		*items[item] = text
	}
	return nil
}

// role returns the credentials of the role of this instance, from the list of roles at a path.
func (m *metadataService) role(ctx context.Context, path string, into any) error {
	roles, err := m.get(ctx, path)
	role, _, _ := strings.Cut(roles, "\n")
	if errors.Is(err, errNotThere) || err == nil && role == "" {
		return &Error{Call: "metadata", Kind: Credentials, Message: "this instance has no role",
			Hint: "attach one, or set AccessKeyID and AccessKeySecret"}
	}
	if err != nil {
		return err
	}
	text, err := m.get(ctx, path+strings.TrimSpace(role))
	if err != nil {
		return err
	}
	if json.Unmarshal([]byte(text), into) != nil {
		return &Error{Call: "metadata", Kind: Credentials,
			Message: "credentials of the role are not JSON"}
	}
	return nil
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

// lines returns the entries of a list in a metadata service.
func lines(text string) []string {
	var list []string
	for l := range strings.FieldsSeq(text) {
		list = append(list, strings.TrimSuffix(l, "/"))
	}
	return list
}
