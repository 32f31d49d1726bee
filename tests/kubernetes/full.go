//go:build full

package main

import (
	"context"

	"github.com/spf13/cobra"
	proxy "k8s.io/kubernetes/cmd/kube-proxy/app"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
	kubelet "k8s.io/kubernetes/cmd/kubelet/app"
)

func init() {
	nodeParts["kubelet"] = kubelet.NewKubeletCommand
	nodeParts["kube-scheduler"] = func(context.Context) *cobra.Command {
		return scheduler.NewSchedulerCommand()
	}
	nodeParts["kube-proxy"] = func(context.Context) *cobra.Command {
		return proxy.NewProxyCommand()
	}
}
