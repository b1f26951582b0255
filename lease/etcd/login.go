package etcd

import (
	"context"
	"errors"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// loginPause is the minimum time between a failed login and the next one.
const loginPause = time.Second

// login adds the token of a user to each request, and logs in when there is no token or etcd
// refuses it: etcd forgets simple tokens when it restarts, and all tokens expire.
//
// etcd's client can log in, too, but sends the old token with the login, which servers before 3.5
// refuse; and it logs in for each stream, so for each keep-alive of an owner key.
type login struct {
	username, password string

	// busy holds one entry during a login. It guards the fields below.
	busy   chan struct{}
	token  *token    // nil: none yet
	failed time.Time // of the last login, if it failed
	err    error     // of the last login
}

// token is a token that etcd issued. Two logins have different *token. The text is empty if etcd
// needs no login.
type token struct{ text string }

const (
	authenticateMethod = "/etcdserverpb.Auth/Authenticate"
	watchMethod        = "/etcdserverpb.Watch/Watch"
)

func newLogin(username, password string) *login {
	return &login{username: username, password: password, busy: make(chan struct{}, 1)}
}

// unary is a gRPC interceptor.
func (l *login) unary(
	ctx context.Context, method string, req, reply any, cc *grpc.ClientConn,
	next grpc.UnaryInvoker, opts ...grpc.CallOption,
) error {
	if method == authenticateMethod {
		return next(ctx, method, req, reply, cc, opts...)
	}
	t, err := l.current(ctx, cc, nil)
	if err != nil {
		return err
	}
	err = next(t.add(ctx), method, req, reply, cc, opts...)
	if !tokenRefused(err) {
		return err
	}
	if t, err = l.current(ctx, cc, t); err != nil {
		return err
	}
	err = next(t.add(ctx), method, req, reply, cc, opts...)
	if tokenRefused(err) {
		// With etcd's own text, its client would repeat the request 100 times.
		err = status.Error(codes.Unauthenticated, "new login: "+status.Convert(err).Message())
	}
	return err
}

// stream is a gRPC interceptor. It logs in again for a watch, which etcd's client opens after it
// lost the connection; the server may have restarted. The other streams need no permission.
func (l *login) stream(
	ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string,
	next grpc.Streamer, opts ...grpc.CallOption,
) (grpc.ClientStream, error) {
	t, err := l.current(ctx, cc, nil)
	if err == nil && method == watchMethod {
		t, err = l.current(ctx, cc, t)
	}
	if err != nil {
		return nil, err
	}
	return next(t.add(ctx), desc, cc, method, opts...)
}

// current returns the current token. It logs in if there is none or if it is the refused one.
func (l *login) current(
	ctx context.Context, cc *grpc.ClientConn, refused *token,
) (*token, error) {
	select {
	case l.busy <- struct{}{}:
		defer func() { <-l.busy }()
	case <-ctx.Done():
		return nil, status.FromContextError(ctx.Err()).Err()
	}
	if l.token != refused {
		return l.token, nil
	}
	if time.Since(l.failed) < loginPause {
		return nil, l.err
	}
	request := etcdserverpb.AuthenticateRequest{Name: l.username, Password: l.password}
	reply, err := etcdserverpb.NewAuthClient(cc).Authenticate(ctx, &request)
	switch {
	case err == nil:
		l.token = &token{reply.Token}
	case errors.Is(rpctypes.Error(err), rpctypes.ErrAuthNotEnabled):
		l.token = &token{}
	default:
		l.failed, l.err = time.Now(), err
		return nil, err
	}
	return l.token, nil
}

// add returns a context whose request carries the token.
func (t *token) add(ctx context.Context) context.Context {
	if t.text == "" {
		return ctx
	}
	return metadata.AppendToOutgoingContext(ctx, rpctypes.TokenFieldNameGRPC, t.text)
}

// tokenRefused reports whether a request failed for the lack of a valid token.
func tokenRefused(err error) bool {
	for _, refusal := range []error{
		rpctypes.ErrInvalidAuthToken, rpctypes.ErrUserEmpty, rpctypes.ErrAuthOldRevision,
	} {
		if errors.Is(rpctypes.Error(err), refusal) {
			return true
		}
	}
	return false
}
