package testetcd

import (
	"context"
	"errors"
	"fmt"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
)

// Put writes a key from inside the process, as an operator's etcdctl put would.
func (s *Server) Put(key, value string) error {
	if s.etcd == nil {
		return errors.New("put into etcd: the server does not run")
	}
	ctx, cancel := context.WithTimeout(context.Background(), readyTimeout)
	defer cancel()
	if _, err := s.etcd.Server.Put(ctx, &etcdserverpb.PutRequest{Key: []byte(key), Value: []byte(value)}); err != nil {
		return fmt.Errorf("put %s into etcd: %w", key, err)
	}
	return nil
}
