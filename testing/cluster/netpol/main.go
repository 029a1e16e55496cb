// Command netpol enforces the NetworkPolicies of a one-node cluster, with kube-router's controller for them and nothing
// else of it. It works in the network namespace it is started in.
//
// It says "ready" on its standard output once what there is at its start is enforced, and goes on until its standard
// input ends. Then it removes its rules and sets.
//
//	netpol KUBECONFIG NODE SERVICES
//
// NODE is the node's name in the cluster, SERVICES the ranges of the services' addresses, separated by commas
// (10.96.0.0/16). Their families are those that are enforced.
package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"

	"github.com/cloudnativelabs/kube-router/v2/pkg/controllers/netpol"
	"github.com/cloudnativelabs/kube-router/v2/pkg/healthcheck"
	"github.com/cloudnativelabs/kube-router/v2/pkg/options"
	"github.com/cloudnativelabs/kube-router/v2/pkg/utils"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
)

func main() {
	if len(os.Args) != 4 {
		fail("usage: netpol KUBECONFIG NODE SERVICES")
	}
	if err := enforce(os.Args[1], os.Args[2], os.Args[3]); err != nil {
		fail(err)
	}
}

func enforce(kubeconfig, node, services string) error {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	settings := options.NewKubeRouterConfig()
	settings.HostnameOverride = node
	settings.ClusterIPCIDRs = strings.Split(services, ",")
	for _, services := range settings.ClusterIPCIDRs {
		if strings.Contains(services, ":") {
			settings.EnableIPv6 = true
		} else {
			settings.EnableIPv4 = true
		}
	}
	handlers, sets, err := netpol.NewIPTablesHandlers(settings)
	if err != nil {
		return err
	}
	factory := informers.NewSharedInformerFactory(client, 0)
	pods := factory.Core().V1().Pods().Informer()
	namespaces := factory.Core().V1().Namespaces().Informer()
	policies := factory.Networking().V1().NetworkPolicies().Informer()
	construct := func() (*netpol.NetworkPolicyController, error) {
		return netpol.NewNetworkPolicyController(
			client, settings, pods, policies, namespaces, &sync.Mutex{}, handlers, sets)
	}
	controller, err := construct()
	if err != nil {
		return err
	}
	// One that has written nothing yet: from the buffers of the other, every rule of the kubelet's would come twice.
	cleaner, err := construct()
	if err != nil {
		return err
	}
	for informer, handler := range map[cache.SharedIndexInformer]cache.ResourceEventHandler{
		pods: controller.PodEventHandler, namespaces: controller.NamespaceEventHandler,
		policies: controller.NetworkPolicyEventHandler,
	} {
		if _, err := informer.AddEventHandler(handler); err != nil {
			return err
		}
	}
	stop := make(chan struct{})
	factory.Start(stop)
	for kind, synced := range factory.WaitForCacheSync(stop) {
		if !synced {
			return fmt.Errorf("no list of %v", kind)
		}
	}

	heartbeats := make(chan *healthcheck.ControllerHeartbeat)
	var running sync.WaitGroup
	running.Add(1)
	go controller.Run(heartbeats, stop, &running)
	// A heartbeat is the beginning of a synchronisation: at the second one the first has been.
	<-heartbeats
	controller.RequestFullSync()
	<-heartbeats
	go func() {
		for range heartbeats {
		}
	}()
	for _, handler := range handlers {
		if err == nil {
			err = filters(handler)
		}
	}
	if err == nil {
		fmt.Println("ready")
		_, err = io.Copy(io.Discard, os.Stdin)
	}
	close(stop)
	running.Wait()
	cleaner.Cleanup()
	return err
}

// filters says whether there are rules for pods: the controller itself only logs that it could not write them.
func filters(iptables utils.IPTablesHandler) error {
	chains, err := iptables.ListChains("filter")
	if err != nil {
		return err
	}
	for _, chain := range chains {
		if strings.HasPrefix(chain, "KUBE-POD-FW-") {
			return nil
		}
	}
	return fmt.Errorf("no rules were written; what is above says why")
}

func fail(why any) {
	fmt.Fprintln(os.Stderr, "netpol:", why)
	os.Exit(1)
}
