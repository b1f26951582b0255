package testetcd

import (
	"context"
	"errors"
	"fmt"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
)

// Put writes a key through the embedded server, like etcdctl put.
func (s *Server) Put(key, value string) error {
	if s.etcd == nil {
		return errors.New("put into etcd: server is not running")
	}
	ctx, cancel := context.WithTimeout(context.Background(), readyTimeout)
	defer cancel()
	r := &etcdserverpb.PutRequest{Key: []byte(key), Value: []byte(value)}
	if _, err := s.etcd.Server.Put(ctx, r); err != nil {
		return fmt.Errorf("put %s into etcd: %w", key, err)
	}
	return nil
}
