package kube

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/types"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/gentype"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"
)

// Config configures a Store.
type Config struct {
	// APIURL and Kubeconfig (a path) select the API server. If both are empty, it is that of the
	// surrounding pod. $KUBECONFIG and home directories are ignored: the user who starts a daemon
	// by hand may have admin credentials of another cluster there.
	APIURL, Kubeconfig string
	// Node is the name of this daemon's Node object. If it is empty, it is read from the pod Pod in
	// Namespace.
	Node, Pod, Namespace string
	// AnnotationPrefix is the prefix of all annotations. The default is FlannelPrefix.
	AnnotationPrefix string
	// NetworkFile is the path of net-conf.json.
	NetworkFile string
	// WriteCondition enables writing the node's NetworkUnavailable condition.
	WriteCondition bool
	// UserAgent identifies the daemon in the API server's logs.
	UserAgent string
	Log       *slog.Logger // default slog.Default()
}

// FlannelPrefix is flannel's default annotation prefix.
const FlannelPrefix = "flannel.alpha.coreos.com"

// nodeAPI and podAPI are the calls of the API server that the Store uses.
type nodeAPI interface {
	Get(ctx context.Context, name string, o metav1.GetOptions) (*corev1.Node, error)
	List(ctx context.Context, o metav1.ListOptions) (*corev1.NodeList, error)
	Watch(ctx context.Context, o metav1.ListOptions) (watch.Interface, error)
	Patch(ctx context.Context, name string, t types.PatchType, data []byte, o metav1.PatchOptions,
		subresources ...string) (*corev1.Node, error)
}

type podAPI interface {
	Get(ctx context.Context, name string, o metav1.GetOptions) (*corev1.Pod, error)
}

// Open returns a Store. It does not contact the API server, which need not be running yet.
func Open(c Config) (*Store, error) {
	scheme, err := coreTypes()
	if err != nil {
		return nil, err
	}
	config, err := restConfig(c, scheme)
	if err != nil {
		return nil, fmt.Errorf("kubernetes client: %w", err)
	}
	transport, err := rest.HTTPClientFor(config)
	if err != nil {
		return nil, fmt.Errorf("kubernetes client for %s: %w", config.Host, err)
	}
	client, err := rest.RESTClientForConfigAndClient(config, transport)
	if err != nil {
		return nil, fmt.Errorf("kubernetes client for %s: %w", config.Host, err)
	}
	nodes, pods := clients(client, scheme, c.Namespace)
	s, err := newStore(c, nodes, pods)
	if err != nil {
		return nil, err
	}
	s.closeIdle = func() { utilnet.CloseIdleConnectionsFor(transport.Transport) }
	return s, nil
}

// coreTypes returns the types of the core group. client-go's clientset registers all groups, which
// would more than double the size of the program.
func coreTypes() (*runtime.Scheme, error) {
	s := runtime.NewScheme()
	if err := corev1.AddToScheme(s); err != nil {
		return nil, fmt.Errorf("register Kubernetes core types: %w", err)
	}
	return s, nil
}

// clients returns typed clients for c.
func clients(c rest.Interface, scheme *runtime.Scheme, namespace string) (nodeAPI, podAPI) {
	parameters := runtime.NewParameterCodec(scheme)
	nodes := gentype.NewClientWithList("nodes", c, parameters, "",
		func() *corev1.Node { return &corev1.Node{} },
		func() *corev1.NodeList { return &corev1.NodeList{} },
		gentype.PrefersProtobuf[*corev1.Node]())
	pods := gentype.NewClient("pods", c, parameters, namespace,
		func() *corev1.Pod { return &corev1.Pod{} }, gentype.PrefersProtobuf[*corev1.Pod]())
	return nodes, pods
}

// restConfig returns the client configuration for the API server.
func restConfig(c Config, scheme *runtime.Scheme) (*rest.Config, error) {
	config, err := findServer(c)
	if err != nil {
		return nil, err
	}
	config.APIPath, config.GroupVersion = "/api", &corev1.SchemeGroupVersion
	config.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
	config.ContentType = "application/vnd.kubernetes.protobuf"
	config.AcceptContentTypes = config.ContentType + ",application/json"
	config.UserAgent = c.UserAgent
	// Warnings concern authors of manifests, not readers of the daemon's log.
	config.WarningHandler = rest.NoWarnings{}
	return config, nil
}

func findServer(c Config) (*rest.Config, error) {
	if c.APIURL == "" && c.Kubeconfig == "" {
		config, err := rest.InClusterConfig()
		if errors.Is(err, rest.ErrNotInCluster) {
			return nil, errors.New(
				"no API server given: set --kube-api-url or --kubeconfig-file, or run in a pod")
		}
		return config, err
	}
	rules := &clientcmd.ClientConfigLoadingRules{ExplicitPath: c.Kubeconfig}
	overrides := &clientcmd.ConfigOverrides{}
	overrides.ClusterInfo.Server = c.APIURL
	loader := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, overrides)
	return loader.ClientConfig()
}

// newStore is Open with the given API clients.
func newStore(c Config, nodes nodeAPI, pods podAPI) (*Store, error) {
	if c.AnnotationPrefix == "" {
		c.AnnotationPrefix = FlannelPrefix
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	names, err := newAnnotations(c.AnnotationPrefix)
	if err != nil {
		return nil, err
	}
	if c.Node == "" && (c.Pod == "" || c.Namespace == "") {
		return nil, errors.New("node name unknown: set NODE_NAME, or POD_NAME and POD_NAMESPACE")
	}
	s := &Store{
		nodes: nodes, pods: pods, names: names, log: c.Log,
		node: c.Node, pod: c.Pod, namespace: c.Namespace,
		networkFile: c.NetworkFile, pollInterval: filePollInterval, closeIdle: func() {},
	}
	s.cache = newNodeCache(names, c.Log, s.observeOwn)
	// Discard client-go's log of every failed attempt: the caller logs errors once.
	quiet := klog.NewContext(context.Background(), klog.Logger{})
	s.ctx, s.stop = context.WithCancel(quiet)
	if c.WriteCondition {
		s.condition = newCondition(s)
		s.running.Go(func() { s.condition.run(s.ctx) })
	}
	return s, nil
}

// filePollInterval is how often the network config file is read. The kubelet itself takes up to a
// minute to update a changed ConfigMap.
const filePollInterval = 5 * time.Second

// Close stops the Store's background goroutines. No method may be called after it.
func (s *Store) Close() error {
	s.stop()
	s.running.Wait()
	s.closeIdle()
	return nil
}
