// One binary with the parts of Kubernetes that weir is tested against. Which part it is says the name
// that it is called by.
package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	_ "time/tzdata"

	"github.com/spf13/cobra"
	"go.etcd.io/etcd/server/v3/etcdmain"
	"go.etcd.io/etcd/server/v3/storage/wal"
	_ "k8s.io/client-go/plugin/pkg/client/auth"
	"k8s.io/component-base/cli"
	_ "k8s.io/component-base/logs/json/register"
	_ "k8s.io/component-base/metrics/prometheus/clientgo"
	_ "k8s.io/component-base/metrics/prometheus/version"
	kubectl "k8s.io/kubectl/pkg/cmd"
	kubectlutil "k8s.io/kubectl/pkg/cmd/util"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllers "k8s.io/kubernetes/cmd/kube-controller-manager/app"
)

// What a real node needs besides; full.go fills it.
var nodeParts = map[string]func(context.Context) *cobra.Command{}

func main() {
	// Only the chosen part is made: they share registries of flags and metrics.
	switch name := filepath.Base(os.Args[0]); name {
	case "etcd":
		// Two of these are allocated before the first write, and the lab's disks are memory.
		wal.SegmentSizeBytes = 8 << 20
		etcdmain.Main(os.Args)
	case "kube-apiserver":
		os.Exit(cli.Run(apiserver.NewAPIServerCommand()))
	case "kube-controller-manager":
		os.Exit(cli.Run(controllers.NewControllerManagerCommand()))
	case "kubectl":
		if err := cli.RunNoErrOutput(kubectl.NewDefaultKubectlCommand()); err != nil {
			kubectlutil.CheckErr(err)
		}
	default:
		part, ok := nodeParts[name]
		if !ok {
			fmt.Fprintf(os.Stderr, "%q is no part of this binary\n", name)
			os.Exit(2)
		}
		os.Exit(cli.Run(part(context.Background())))
	}
}
