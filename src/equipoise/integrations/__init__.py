"""Balancer and MAO in other libraries' loops; other libraries' methods in Balancer."""
