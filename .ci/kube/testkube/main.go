// Testkube is the control plane for the Kubernetes tests in one binary: an etcd member, the API
// server built from its own command, and the controller that assigns pod CIDRs to nodes. Each is a
// subcommand, so that a test can stop one and keep the others running. The subcommand kustomize
// renders a directory of manifests as kubectl kustomize does.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"go.etcd.io/etcd/server/v3/embed"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/component-base/cli"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	"k8s.io/kubernetes/pkg/controller/nodeipam"
	"k8s.io/kubernetes/pkg/controller/nodeipam/ipam"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
)

const usage = "usage: testkube etcd | kube-apiserver | node-ipam | kustomize [flags]"

func main() {
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, usage)
		os.Exit(2)
	}
	name, args := os.Args[1], os.Args[2:]
	var err error
	switch name {
	case "etcd":
		err = runEtcd(args)
	case "kube-apiserver":
		cmd := apiserver.NewAPIServerCommand() // handles SIGTERM itself
		cmd.SetArgs(args)
		os.Exit(cli.Run(cmd))
	case "node-ipam":
		err = runNodeIPAM(args)
	case "kustomize":
		err = render(args)
	default:
		err = errors.New(usage)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// runEtcd runs a single etcd member until it receives a signal.
func runEtcd(args []string) error {
	flags := flag.NewFlagSet("etcd", flag.ExitOnError)
	dir := flags.String("data-dir", "", "data directory")
	client := flags.String("client-url", "", "URL for clients")
	peer := flags.String("peer-url", "", "URL for peers")
	if err := flags.Parse(args); err != nil {
		return err
	}
	clientURL, err := url.Parse(*client)
	if err != nil {
		return err
	}
	peerURL, err := url.Parse(*peer)
	if err != nil {
		return err
	}
	c := embed.NewConfig()
	c.Dir, c.LogLevel, c.UnsafeNoFsync = *dir, "error", true
	c.ListenClientUrls, c.AdvertiseClientUrls = []url.URL{*clientURL}, []url.URL{*clientURL}
	c.ListenPeerUrls, c.AdvertisePeerUrls = []url.URL{*peerURL}, []url.URL{*peerURL}
	c.InitialCluster = c.InitialClusterFromName(c.Name)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	member, err := embed.StartEtcd(c)
	if err != nil {
		return err
	}
	defer member.Close()
	select {
	case <-ctx.Done():
		return nil
	case err := <-member.Err():
		return err
	}
}

// runNodeIPAM assigns every node a /24 and, given an IPv6 range, a /64, until it receives a signal.
func runNodeIPAM(args []string) error {
	flags := flag.NewFlagSet("node-ipam", flag.ExitOnError)
	kubeconfig := flags.String("kubeconfig", "", "kubeconfig with the controller's permissions")
	ranges := flags.String("cluster-cidr", "", "comma-separated ranges to allocate from")
	if err := flags.Parse(args); err != nil {
		return err
	}
	var cidrs []*net.IPNet
	var lengths []int
	for text := range strings.SplitSeq(*ranges, ",") {
		ip, cidr, err := net.ParseCIDR(text)
		if err != nil {
			return err
		}
		length := 24
		if ip.To4() == nil {
			length = 64
		}
		cidrs, lengths = append(cidrs, cidr), append(lengths, length)
	}
	config, err := clientcmd.BuildConfigFromFlags("", *kubeconfig)
	if err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	factory := informers.NewSharedInformerFactory(client, 0)
	controller, err := nodeipam.NewNodeIpamController(ctx, factory.Core().V1().Nodes(), nil, client,
		cidrs, nil, nil, lengths, ipam.RangeAllocatorType)
	if err != nil {
		return err
	}
	factory.Start(ctx.Done())
	controller.Run(ctx)
	return nil
}

// render prints the manifests rendered from a directory's kustomization.
func render(args []string) error {
	if len(args) != 1 {
		return errors.New("usage: testkube kustomize DIRECTORY")
	}
	kustomizer := krusty.MakeKustomizer(krusty.MakeDefaultOptions())
	resources, err := kustomizer.Run(filesys.MakeFsOnDisk(), args[0])
	if err != nil {
		return err
	}
	text, err := resources.AsYaml()
	if err != nil {
		return err
	}
	_, err = os.Stdout.Write(text)
	return err
}
