// Certs writes the cluster's keys, certificates and kubeconfigs into a folder.
// The authority and the service accounts' key are kept if they are there; everything else is issued anew.
package main

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"log"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// Someone that the authority vouches for. Servers have addresses, clients with a kubeconfig have none.
type identity struct {
	file      string
	user      string
	groups    []string
	addresses []string
}

var kubernetesNames = []string{
	"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local",
}

func main() {
	log.SetFlags(0)
	out := flag.String("out", "", "folder to write to")
	server := flag.String("server", "", "URL of the API server")
	node := flag.String("node", "", "name of the node")
	nodeIP := flag.String("node-ip", "", "address of the node")
	serviceIP := flag.String("service-ip", "", "address of the kubernetes Service")
	flag.Parse()
	if err := write(*out, *server, *node, *nodeIP, *serviceIP); err != nil {
		log.Fatal(err)
	}
}

func write(out, server, node, nodeIP, serviceIP string) error {
	if err := os.MkdirAll(out, 0o700); err != nil {
		return err
	}
	if _, err := loadOrCreateKey(filepath.Join(out, "sa.key")); err != nil {
		return err
	}
	authority, err := loadOrCreateAuthority(out)
	if err != nil {
		return err
	}
	servers := []identity{
		{file: "apiserver", user: "kube-apiserver", addresses: append([]string{"127.0.0.1", nodeIP, serviceIP}, kubernetesNames...)},
		{file: "kubelet", user: "system:node:" + node, groups: []string{"system:nodes"}, addresses: []string{nodeIP, node}},
		{file: "apiserver-kubelet-client", user: "kube-apiserver-kubelet-client"},
	}
	for _, one := range servers {
		if _, _, err := authority.issue(out, one); err != nil {
			return err
		}
	}
	clients := []identity{
		{file: "admin", user: "admin", groups: []string{"system:masters"}},
		{file: "kube-controller-manager", user: "system:kube-controller-manager"},
		{file: "kube-scheduler", user: "system:kube-scheduler"},
		{file: "kube-proxy", user: "system:kube-proxy"},
		{file: "local-storage", user: "belay:local-storage"},
		{file: "kubelet-client", user: "system:node:" + node, groups: []string{"system:nodes"}},
	}
	for _, one := range clients {
		if err := authority.writeKubeconfig(out, server, one); err != nil {
			return err
		}
	}
	return nil
}

type authority struct {
	certificate *x509.Certificate
	pem         []byte
	key         crypto.Signer
}

func loadOrCreateAuthority(out string) (*authority, error) {
	key, err := loadOrCreateKey(filepath.Join(out, "ca.key"))
	if err != nil {
		return nil, err
	}
	path := filepath.Join(out, "ca.crt")
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		template := template("belay-test-cluster", nil)
		template.IsCA = true
		template.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature
		template.ExtKeyUsage = nil
		text, err = sign(template, template, key.Public(), key)
		if err == nil {
			err = os.WriteFile(path, text, 0o644)
		}
	}
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, fmt.Errorf("%s holds no certificate", path)
	}
	certificate, err := x509.ParseCertificate(block.Bytes)
	return &authority{certificate, text, key}, err
}

// issue writes FILE.crt and FILE.key and returns both.
func (a *authority) issue(out string, who identity) (certificate, key []byte, err error) {
	signer, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	template := template(who.user, who.groups)
	for _, address := range who.addresses {
		if ip := net.ParseIP(address); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, address)
		}
	}
	if certificate, err = sign(template, a.certificate, signer.Public(), a.key); err != nil {
		return nil, nil, err
	}
	if err = os.WriteFile(filepath.Join(out, who.file+".crt"), certificate, 0o644); err != nil {
		return nil, nil, err
	}
	key, err = writeKey(filepath.Join(out, who.file+".key"), signer)
	return certificate, key, err
}

func (a *authority) writeKubeconfig(out, server string, who identity) error {
	certificate, key, err := a.issue(out, who)
	if err != nil {
		return err
	}
	encode := base64.StdEncoding.EncodeToString
	text := fmt.Sprintf(`apiVersion: v1
kind: Config
clusters: [{name: belay, cluster: {server: %q, certificate-authority-data: %s}}]
users: [{name: %q, user: {client-certificate-data: %s, client-key-data: %s}}]
contexts: [{name: belay, context: {cluster: belay, user: %q}}]
current-context: belay
`, server, encode(a.pem), who.user, encode(certificate), encode(key), who.user)
	return os.WriteFile(filepath.Join(out, who.file+".kubeconfig"), []byte(text), 0o600)
}

func template(name string, groups []string) *x509.Certificate {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		log.Fatal(err)
	}
	return &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: name, Organization: groups},
		NotBefore:             time.Now().Add(-time.Hour),
		NotAfter:              time.Now().AddDate(5, 0, 0),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
	}
}

func sign(template, parent *x509.Certificate, subject crypto.PublicKey, key crypto.Signer) ([]byte, error) {
	der, err := x509.CreateCertificate(rand.Reader, template, parent, subject, key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), nil
}

func loadOrCreateKey(path string) (crypto.Signer, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return nil, err
		}
		_, err = writeKey(path, key)
		return key, err
	}
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, fmt.Errorf("%s holds no key", path)
	}
	return x509.ParseECPrivateKey(block.Bytes)
}

func writeKey(path string, key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, err
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der})
	return text, os.WriteFile(path, text, 0o600)
}
