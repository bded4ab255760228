"""
The model in pure PyTorch: a state-space model with a diffusion transition.

Nothing here knows of darts or Lightning. The files, from the inside out:

- ``networks``: the multilayer perceptron and the conditional residual block;
- ``diffusion``: explicit score matching, the preconditioned denoiser, the solver;
- ``probability_flow``: the density of a diffusion model;
- ``context``: what the transition sees of the past latents;
- ``transition``: p_psi(z_t | z_{t-j:t-1}, u_t), diffusion or Gaussian;
- ``encoder``: q_phi(z_t | z_{t-1}, x_{1:T});
- ``decoder``: the parameters of p_theta(x_t | z_t, u_t);
- ``state_space``: the whole, its evidence bound and its roll-out;
- ``patches``: windows cut so that a state stands for several time steps.
"""
