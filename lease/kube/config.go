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

// Config says which cluster, and which of its nodes is ours.
type Config struct {
	// APIURL and Kubeconfig (a path) name the API server. If both are empty it is that of the pod we run in. Nothing is
	// taken from $KUBECONFIG or a home directory: who starts a daemon by hand may have another cluster's admin there.
	APIURL, Kubeconfig string
	// Node is the name of our Node object. If it is empty, it is asked of the API server for the pod Pod in Namespace.
	Node, Pod, Namespace string
	// AnnotationPrefix begins the names of all annotations. Empty: flannel's.
	AnnotationPrefix string
	// NetworkFile is the path of net-conf.json.
	NetworkFile string
	// WriteCondition says whether the node's NetworkUnavailable condition is ours to write.
	WriteCondition bool
	// UserAgent is how the API server's logs name us.
	UserAgent string
	Log       *slog.Logger // default slog.Default()
}

// FlannelPrefix is what flannel's annotations begin with by default.
const FlannelPrefix = "flannel.alpha.coreos.com"

// nodeAPI and podAPI are what is asked of the API server.
type nodeAPI interface {
	Get(ctx context.Context, name string, o metav1.GetOptions) (*corev1.Node, error)
	List(ctx context.Context, o metav1.ListOptions) (*corev1.NodeList, error)
	Watch(ctx context.Context, o metav1.ListOptions) (watch.Interface, error)
	Patch(ctx context.Context, name string, t types.PatchType, data []byte, o metav1.PatchOptions, sub ...string) (*corev1.Node, error)
}

type podAPI interface {
	Get(ctx context.Context, name string, o metav1.GetOptions) (*corev1.Pod, error)
}

// Open prepares a Store. Nothing is asked of the API server before the first call, so it need not be there yet.
func Open(c Config) (*Store, error) {
	known, err := coreTypes()
	if err != nil {
		return nil, err
	}
	config, err := restConfig(c, known)
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
	nodes, pods := clients(client, known, c.Namespace)
	s, err := newStore(c, nodes, pods)
	if err != nil {
		return nil, err
	}
	s.hangUp = func() { utilnet.CloseIdleConnectionsFor(transport.Transport) }
	return s, nil
}

// coreTypes are the types of the core group. The clientset of client-go knows all groups, which makes a program larger by
// more than all else in it.
func coreTypes() (*runtime.Scheme, error) {
	s := runtime.NewScheme()
	if err := corev1.AddToScheme(s); err != nil {
		return nil, fmt.Errorf("register the types of Kubernetes: %w", err)
	}
	return s, nil
}

// clients are the typed clients of one REST client.
func clients(c rest.Interface, known *runtime.Scheme, namespace string) (nodeAPI, podAPI) {
	parameters := runtime.NewParameterCodec(known)
	nodes := gentype.NewClientWithList("nodes", c, parameters, "",
		func() *corev1.Node { return &corev1.Node{} }, func() *corev1.NodeList { return &corev1.NodeList{} },
		gentype.PrefersProtobuf[*corev1.Node]())
	pods := gentype.NewClient("pods", c, parameters, namespace,
		func() *corev1.Pod { return &corev1.Pod{} }, gentype.PrefersProtobuf[*corev1.Pod]())
	return nodes, pods
}

// restConfig finds the API server and how to talk to it.
func restConfig(c Config, known *runtime.Scheme) (*rest.Config, error) {
	config, err := findServer(c)
	if err != nil {
		return nil, err
	}
	config.APIPath, config.GroupVersion = "/api", &corev1.SchemeGroupVersion
	config.NegotiatedSerializer = serializer.NewCodecFactory(known).WithoutConversion()
	config.ContentType = "application/vnd.kubernetes.protobuf"
	config.AcceptContentTypes = config.ContentType + ",application/json"
	config.UserAgent = c.UserAgent
	// Of use to those who write manifests, not to those who read the log of a daemon.
	config.WarningHandler = rest.NoWarnings{}
	return config, nil
}

func findServer(c Config) (*rest.Config, error) {
	if c.APIURL == "" && c.Kubeconfig == "" {
		config, err := rest.InClusterConfig()
		if errors.Is(err, rest.ErrNotInCluster) {
			return nil, errors.New("which API server cannot be told: give --kube-api-url or --kubeconfig-file, or run in a pod")
		}
		return config, err
	}
	rules := &clientcmd.ClientConfigLoadingRules{ExplicitPath: c.Kubeconfig}
	overrides := &clientcmd.ConfigOverrides{}
	overrides.ClusterInfo.Server = c.APIURL
	return clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, overrides).ClientConfig()
}

// newStore is Open with the API server given.
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
		return nil, errors.New("which node this is cannot be told: set NODE_NAME, or POD_NAME and POD_NAMESPACE")
	}
	s := &Store{
		nodes: nodes, pods: pods, names: names, log: c.Log, node: c.Node, pod: c.Pod, namespace: c.Namespace,
		networkFile: c.NetworkFile, poll: filePoll, hangUp: func() {},
	}
	s.roster = newRoster(names, c.Log, s.ownSeen)
	// What client-go would log of each failed try is said once by those who call us.
	quiet := klog.NewContext(context.Background(), klog.Logger{})
	s.ctx, s.stop = context.WithCancel(quiet)
	if c.WriteCondition {
		s.condition = newCondition(s)
		s.running.Go(func() { s.condition.run(s.ctx) })
	}
	return s, nil
}

// filePoll is how often the network config file is looked at. The kubelet itself takes up to a minute to put a changed
// ConfigMap in place.
const filePoll = 5 * time.Second

// Close ends what the Store does in the background. Nothing may be called after it.
func (s *Store) Close() error {
	s.stop()
	s.running.Wait()
	s.hangUp()
	return nil
}
